package gcs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

const (
	// deleteBatch is how many deletes one request of the batch API takes.
	// Source: https://cloud.google.com/storage/docs/batch
	deleteBatch = 100
	// maxPending bounds what is remembered before it is deleted.
	maxPending = 20 * deleteBatch
	// batchTries is how often a delete is tried that the server was too busy for.
	batchTries = 4
)

// Purge implements blob.Store. It lists all generations, and deletes a hundred of them with a request. A bucket with soft
// delete keeps what was deleted for as long as it is set to, where nobody sees it.
func (s *Store) Purge(ctx context.Context, prefix string, match func(key string) bool) (int, error) {
	if err := blob.CheckPrefix(prefix); err != nil {
		return 0, s.invalid("purge", prefix, err)
	}
	p := &purger{s: s, ctx: ctx, prefix: prefix, match: match, gone: map[string]bool{}, failed: map[string]bool{}}
	err := p.run()
	if err != nil {
		p.errs = append(p.errs, err)
	}
	n := 0
	for key := range p.gone {
		if !p.failed[key] {
			n++
		}
	}
	return n, errors.Join(append(p.errs, p.failures()...)...)
}

// purger is one run of Purge.
type purger struct {
	s            *Store
	ctx          context.Context
	prefix       string
	match        func(string) bool
	pending      []object
	lastKey      string
	lastMatch    bool
	gone, failed map[string]bool
	groups       []*failureGroup
	errs         []error
}

// failureGroup has the failures for one reason.
type failureGroup struct {
	first *rest.StatusError
	keys  []string
	// locked is set if what is protected is the reason.
	locked *blob.LockedError
}

func (p *purger) run() error {
	l := listing{prefix: p.s.prefix + p.prefix, versions: true, max: pageSize}
	for found, err := range p.s.pages(p.ctx, l) {
		if err != nil {
			return p.s.failList(p.ctx, "purge", p.prefix, err)
		}
		for _, o := range found.Items {
			p.add(o)
		}
		if len(p.pending) >= maxPending {
			if err := p.flush(); err != nil {
				return err
			}
		}
	}
	return p.flush()
}

// add remembers a generation if its key matches; match is asked once for a key, whose generations come together.
func (p *purger) add(o object) {
	key := strings.TrimPrefix(o.Name, p.s.prefix)
	if key == "" {
		return
	}
	if key != p.lastKey {
		p.lastKey, p.lastMatch = key, p.match(key)
	}
	if p.lastMatch {
		p.pending = append(p.pending, o)
	}
}

// flush deletes what is pending. It goes on after objects that can't be deleted, but not after a request that fails as a whole.
func (p *purger) flush() error {
	pending := p.pending
	p.pending = nil
	for batch := range slices.Chunk(pending, deleteBatch) {
		pause := 500 * time.Millisecond
		for try := 1; len(batch) > 0; try++ {
			busy, err := p.delete(batch, try == batchTries)
			if err != nil {
				return p.s.fail(p.ctx, "purge", permDelete, p.prefix, err)
			}
			if batch = busy; len(batch) == 0 {
				break
			}
			if err := blob.Sleep(p.ctx, pause); err != nil {
				return p.s.fail(p.ctx, "purge", permDelete, p.prefix, err)
			}
			pause *= 2
		}
	}
	return nil
}

// delete sends one batch, and returns those objects for which the server was too busy; with last set these are failures too.
func (p *purger) delete(batch []object, last bool) (busy []object, err error) {
	const boundary = "etcd-manager-batch"
	var b bytes.Buffer
	for i, o := range batch {
		fmt.Fprintf(&b, "--%s\r\nContent-Type: application/http\r\nContent-ID: <%d>\r\n\r\nDELETE %s?%s HTTP/1.1\r\n\r\n\r\n", boundary, i,
			p.s.path(o.Name), url.Values{"generation": {o.Generation}}.Encode())
	}
	fmt.Fprintf(&b, "--%s--\r\n", boundary)
	req := call(permDelete, http.MethodPost, p.s.base+"/batch/storage/v1")
	req.Header.Set("Content-Type", "multipart/mixed; boundary="+boundary)
	req.Body = [][]byte{b.Bytes()}
	resp, err := p.s.client.Do(p.ctx, req)
	if err != nil {
		return nil, err
	}
	answers, err := readBatch(resp, len(batch))
	if err != nil {
		return nil, err
	}
	for i, o := range batch {
		e := answers[i]
		switch {
		case e == nil || e.Status == http.StatusNotFound && !missingBucket(e):
			p.gone[o.Name] = true
		case e.Transient() && !last:
			busy = append(busy, o)
		default:
			p.fail(o, e)
		}
	}
	return busy, nil
}

// readBatch reads the answers to a batch of n; nil stands for a success.
func readBatch(resp *http.Response, n int) ([]*rest.StatusError, error) {
	_, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	data, rerr := rest.ReadAll(resp)
	if err = errors.Join(err, rerr); err != nil {
		return nil, fmt.Errorf("read the answer to a batch: %w", err)
	}
	answers, seen := make([]*rest.StatusError, n), make([]bool, n)
	parts := multipart.NewReader(bytes.NewReader(data), params["boundary"])
	for i := 0; ; i++ {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the answer to a batch: %w", err)
		}
		at := position(part.Header, i)
		if at < 0 || at >= n {
			return nil, fmt.Errorf("the answer to a batch of %d has a part %d", n, at)
		}
		one, err := http.ReadResponse(bufio.NewReader(part), nil)
		if err != nil {
			return nil, fmt.Errorf("read part %d of the answer to a batch: %w", at, err)
		}
		seen[at] = true
		body, err := rest.ReadAll(one)
		if one.StatusCode < http.StatusBadRequest {
			continue
		}
		e := &rest.StatusError{Op: permDelete, Status: one.StatusCode, Header: one.Header, At: time.Now()}
		if err == nil {
			e.Code, e.Message = explain(one.Header, body)
		}
		answers[at] = e
	}
	if i := slices.Index(seen, false); i >= 0 {
		return nil, fmt.Errorf("the answer to a batch of %d has no part %d", n, i)
	}
	return answers, nil
}

// position is the number of the call that a part answers: "Content-ID: <response-7>". Parts without one come in order.
func position(header textproto.MIMEHeader, inOrder int) int {
	id := strings.Trim(header.Get("Content-Id"), "<>")
	n, err := strconv.Atoi(id[strings.LastIndexAny(id, "-+")+1:])
	if err != nil {
		return inOrder
	}
	return n
}

func (p *purger) fail(o object, e *rest.StatusError) {
	p.failed[o.Name] = true
	key := strings.TrimPrefix(o.Name, p.s.prefix)
	i := slices.IndexFunc(p.groups, func(g *failureGroup) bool { return g.first.Status == e.Status && g.first.Code == e.Code })
	if i < 0 {
		g := &failureGroup{first: e}
		if e.Status == http.StatusForbidden && (e.Code == reasonRetention || e.Code == reasonHold) {
			g.locked = &blob.LockedError{}
		}
		p.groups = append(p.groups, g)
		i = len(p.groups) - 1
	}
	g := p.groups[i]
	if len(g.keys) == 0 || g.keys[len(g.keys)-1] != key {
		g.keys = append(g.keys, key)
	}
	if g.locked != nil {
		g.locked.LegalHold = g.locked.LegalHold || o.TemporaryHold || o.EventHold
		if t := o.RetainedUntil; !t.IsZero() && (g.locked.Until.IsZero() || t.Before(g.locked.Until)) {
			g.locked.Until = t
		}
	}
}

// failures returns one error for each reason.
func (p *purger) failures() []error {
	var errs []error
	for _, g := range p.groups {
		e := &blob.Error{Op: "purge", Key: p.s.name(g.keys[0]), Keys: g.keys, Err: g.first}
		if g.locked != nil {
			g.locked.Keys = g.keys
			errs = append(errs, &blob.Error{Op: "purge", Key: e.Key, Kind: blob.ErrLocked, Err: g.locked})
			continue
		}
		p.s.classify(e, permDelete)
		if n := len(g.keys); n > 1 {
			e.Err = fmt.Errorf("%w (and %d more)", e.Err, n-1)
		}
		errs = append(errs, e)
	}
	return errs
}
