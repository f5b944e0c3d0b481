package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// store is the way of one process to the store: slow, cut off, and now and then an answer is lost.
type store struct{ p *proc }

// reach is the way there. lost tells that the operation takes place and its answer doesn't come back.
func (s *store) reach(ctx context.Context, op, key string) (lost error, err error) {
	p := s.p
	if err := p.step(); err != nil {
		return nil, blobtest.Transient(op, key)
	}
	w, what := p.n.w, []string{"store", string(p.n.id), op, kindOf(key)}
	w.mu.Lock()
	w.did["store: "+op]++
	d := 2*time.Millisecond + w.drawn(30*time.Millisecond, what...)
	if w.faulty && w.draw(50, append(what, "tail")...) == 0 {
		d += w.drawn(3*time.Second, append(what, "tail")...)
	}
	w.mu.Unlock()
	if !sleep(ctx, d) {
		return nil, &blob.Error{Op: op, Key: key, Kind: blob.ErrTransient, Err: ctx.Err()}
	}
	w.mu.Lock()
	cut := w.away || p.n.cutOff || !p.n.up
	hang := cut && w.draw(2, append(what, "hang")...) == 0
	dead := p.dead
	if w.faulty && !cut && w.draw(40, append(what, "lost")...) == 0 {
		lost = blobtest.Transient(op, key)
	}
	w.mu.Unlock()
	switch {
	case hang:
		<-ctx.Done() // every part of the product has its own time
		return nil, &blob.Error{Op: op, Key: key, Kind: blob.ErrTransient, Err: ctx.Err()}
	case cut || dead:
		return nil, blobtest.Transient(op, key)
	}
	return lost, nil
}

// kindOf is what of a key doesn't depend on who asks first.
func kindOf(key string) string {
	if strings.HasPrefix(key, "control/probe/") {
		return "control/probe/" // what follows is random
	}
	return key
}

func (s *store) Put(ctx context.Context, key string, body io.Reader, o blob.PutOptions) (blob.Info, error) {
	w := s.p.n.w
	data, err := io.ReadAll(body)
	if err != nil {
		return blob.Info{}, err
	}
	lost, err := s.reach(ctx, "put", key)
	if err != nil {
		return blob.Info{}, err
	}
	if w.bug.is("store-ignores-conditions") {
		o.IfAbsent, o.IfVersion = false, ""
	}
	info, err := w.mem.Put(context.WithoutCancel(ctx), key, bytes.NewReader(data), o)
	if err == nil {
		w.mu.Lock()
		w.truth.stored(s.p, key, data)
		w.mu.Unlock()
	}
	if lost != nil {
		w.mu.Lock()
		w.did["answer of the store lost"]++
		w.mu.Unlock()
		return blob.Info{}, lost
	}
	return info, err
}

func (s *store) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	lost, err := s.reach(ctx, "purge", prefix)
	if err != nil {
		return 0, err
	}
	n, err := s.p.n.w.mem.Purge(context.WithoutCancel(ctx), prefix, match)
	if lost != nil {
		return 0, lost
	}
	return n, err
}

func (s *store) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	lost, err := s.reach(ctx, "get", key)
	if err = errors.Join(err, lost); err != nil {
		return nil, blob.Info{}, err
	}
	return s.p.n.w.mem.Get(context.WithoutCancel(ctx), key, r)
}

func (s *store) Stat(ctx context.Context, key string) (blob.Info, error) {
	lost, err := s.reach(ctx, "stat", key)
	if err = errors.Join(err, lost); err != nil {
		return blob.Info{}, err
	}
	return s.p.n.w.mem.Stat(context.WithoutCancel(ctx), key)
}

func (s *store) List(ctx context.Context, prefix string, o blob.ListOptions) iter.Seq2[blob.Entry, error] {
	lost, err := s.reach(ctx, "list", prefix)
	if err = errors.Join(err, lost); err != nil {
		return func(yield func(blob.Entry, error) bool) { yield(blob.Entry{}, err) }
	}
	return s.p.n.w.mem.List(context.WithoutCancel(ctx), prefix, o)
}

// backupData is what the data of a simulated backup has.
type backupData struct {
	Revision int64
	Writes   []int
}

// fetch reads a backup as a node does that is to restore it.
func (p *proc) fetch(ctx context.Context, name string) (backupData, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c := catalog.New(&store{p: p})
	var b backupData
	r, _, err := c.OpenBackupData(ctx, name, catalog.DataFile, 0)
	if errors.Is(err, catalog.ErrNotFound) {
		return b, fmt.Errorf("backup %s doesn't exist: %w", name, cluster.ErrPermanent)
	}
	if err != nil {
		return b, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return b, err
	}
	if err := json.Unmarshal(data, &b); err != nil {
		return b, fmt.Errorf("backup %s is damaged: %w", name, cluster.ErrPermanent)
	}
	return b, nil
}

// backup is what a backup really has.
func (w *world) backup(name string) (b backupData, err error) {
	r, _, err := w.catalog.OpenBackupData(context.Background(), name, catalog.DataFile, 0)
	if err != nil {
		return b, err
	}
	defer r.Close()
	return b, json.NewDecoder(r).Decode(&b)
}

// doBackup stores what the own etcd has.
func (p *proc) doBackup(ctx context.Context, req *protosv1.TakeBackup) (*protosv1.PerformEvent, error) {
	w, n := p.n.w, p.n
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	w.mu.Lock()
	if !w.healthy(n) || memberOf(n.dir().members(), n.dir().member).Learner {
		w.mu.Unlock()
		return nil, errors.New("etcd isn't healthy here")
	}
	began := time.Now()
	token, d := n.etcd.token, n.dir()
	b := backupData{Revision: d.revision(), Writes: d.writes()}
	version := n.etcd.version
	w.mu.Unlock()
	data, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	c, name := catalog.New(&store{p: p}), req.GetName()
	digest := catalog.Digest{Size: int64(len(data)), SHA256: strings.Repeat("0", 64)}
	m := &catalog.Manifest{Backup: name, ClusterName: "sim", ClusterID: catalog.HexID(memberID(token, "", 0)),
		MemberID:    catalog.HexID(d.member),
		EtcdVersion: version, Revision: b.Revision, Raw: digest, Stored: digest, Compression: catalog.CompressionGzip,
		Reason: req.GetReason(), Started: began, Finished: time.Now(), ToolVersion: "sim"}
	if _, err := c.PutBackupData(ctx, name, catalog.DataFile, bytes.NewReader(data)); err != nil {
		return nil, err
	}
	if err := c.PutManifest(ctx, m); err != nil {
		return nil, err
	}
	if err := c.CommitBackup(ctx, name, catalog.BackupInfo{EtcdVersion: version, Time: began}); err != nil {
		return nil, err
	}
	return &protosv1.PerformEvent{Done: true, Backup: name, Facts: &protosv1.Facts{Revision: b.Revision}}, nil
}
