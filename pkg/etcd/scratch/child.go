package scratch

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
)

// Subcommand is the name of [Command].
const Subcommand = "scratch-etcd"

const (
	// name is the member's.
	name = "scratch"
	// peerURL is a socket below the directory. etcd takes it for host and port.
	peerURL = "unix://peer:0"
	// serveTime is how long an etcd may take to serve: it reads the whole database.
	serveTime = 5 * time.Minute
	// stopTime is how long it gets to stop. What it has not written is lost with the rest.
	stopTime = 2 * time.Second
	// portAttempts bounds how often another free port is taken when somebody else was faster.
	portAttempts = 5
)

// Command is the hidden subcommand that keeps a directory: its argument. Standard input says what to serve, and when it ends, so does the
// process, and the directory is removed.
func Command() child.Command {
	return child.Command{Name: Subcommand, Main: func(args []string) int {
		if len(args) != 1 || !filepath.IsAbs(args[0]) {
			fmt.Fprintf(os.Stderr, "usage: %s DIRECTORY\n", Subcommand)
			return 2
		}
		child.LimitSelf()
		return keep(args[0])
	}}
}

// keep serves until its standard input ends or it is told to stop.
func keep(dir string) int {
	signal.Ignore(os.Interrupt, syscall.SIGHUP, syscall.SIGPIPE)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	if err := os.Chdir(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	lines := make(chan []byte)
	go func() {
		defer close(lines)
		in := bufio.NewReader(os.Stdin)
		for {
			line, err := in.ReadBytes('\n')
			if err != nil {
				return
			}
			lines <- line
		}
	}()
	var serving *embed.Etcd
	code := 0
	started := make(chan *embed.Etcd, 1)
	for open := true; open; {
		select {
		case line, ok := <-lines:
			if open = ok; ok {
				go func() { started <- answer(line, dir) }()
			}
		case serving = <-started:
			if serving == nil {
				code, open = 1, false
			}
		case err := <-failed(serving):
			fmt.Fprintln(os.Stderr, err)
			code, open = 1, false
		case <-stop:
			open = false
		}
	}
	remove(serving, dir)
	return code
}

// failed yields why an etcd has ended; nothing where none runs.
func failed(e *embed.Etcd) <-chan error {
	if e == nil {
		return nil
	}
	return e.Err()
}

// remove ends the etcd and takes the directory away.
func remove(e *embed.Etcd, dir string) {
	if e != nil {
		stopped := make(chan struct{})
		go func() { e.Close(); close(stopped) }()
		select {
		case <-stopped:
		case <-time.After(stopTime):
		}
	}
	for range 10 { // something may still be written to it
		if os.RemoveAll(dir) == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// answer does what a line asks for, and says how that went.
func answer(line []byte, dir string) *embed.Etcd {
	var o Order
	r := reply{Serving: &Serving{Version: etcd.CompiledVersion}}
	err := json.Unmarshal(line, &o)
	var e *embed.Etcd
	if err == nil {
		e, err = o.serve(dir, r.Serving)
	}
	if err != nil {
		r = reply{Error: err.Error(), Kind: child.KindOf(err)}
	}
	if werr := json.NewEncoder(os.Stdout).Encode(r); werr != nil || err != nil {
		return nil
	}
	return e
}

// serve stages the snapshot and starts an etcd on it.
func (o *Order) serve(dir string, s *Serving) (*embed.Etcd, error) {
	data := filepath.Join(dir, "data")
	res, err := datadir.Stage(context.Background(), datadir.StageConfig{ // who wants it to end, ends the process
		// It was checked when it was fetched, or written by the replay. Its structure is checked all the same.
		SnapshotPath: o.Snapshot, Consume: true, SkipHash: true, DataDir: data, Name: name, Token: name,
		InitialCluster: []etcd.Peer{{Name: name, PeerURLs: []string{peerURL}}}, TargetVersion: etcd.CompiledVersion,
	})
	if err != nil {
		return nil, err
	}
	s.Hash, s.Keys = res.Hash, res.Keys
	if err := etcd.Guard("prolong leases", func() (err error) { s.Leases, err = prolongLeases(etcd.DBPath(data)); return err }); err != nil {
		return nil, err
	}
	if err := os.Remove(etcd.StagedMarker(data)); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		e, endpoint, err := start(data, o.Listen)
		s.Endpoint = endpoint
		_, port, _ := net.SplitHostPort(o.Listen)
		if err == nil || port != "0" || attempt == portAttempts || !errors.Is(err, syscall.EADDRINUSE) {
			return e, err
		}
	}
}

// start runs an etcd and waits until it serves.
func start(data, listen string) (*embed.Etcd, string, error) {
	address, err := freeAddress(listen)
	if err != nil {
		return nil, "", err
	}
	client, peer := url.URL{Scheme: "http", Host: address}, url.URL{Scheme: "unix", Host: "peer:0"}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.InitialClusterToken = name, data, name
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = name + "=" + peerURL
	cfg.LogLevel, cfg.LogOutputs = "error", []string{"stderr"}
	cfg.TickMs, cfg.ElectionMs = 20, 200 // nobody else votes
	cfg.UnsafeNoFsync = true             // a crash costs nothing but the copy
	cfg.QuotaBackendBytes = -1           // the data are as large as they are
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, "", fmt.Errorf("start etcd %s on %s: %w", etcd.CompiledVersion, address, err)
	}
	select {
	case <-e.Server.ReadyNotify():
		return e, client.String(), nil
	case err := <-e.Err():
		return nil, "", fmt.Errorf("start etcd %s on %s: %w", etcd.CompiledVersion, address, err)
	case <-e.Server.StopNotify():
		return nil, "", fmt.Errorf("start etcd %s on %s: it has stopped", etcd.CompiledVersion, address)
	case <-time.After(serveTime):
		return nil, "", fmt.Errorf("start etcd %s on %s: it doesn't serve after %s", etcd.CompiledVersion, address, serveTime)
	}
}

// freeAddress chooses the port, since etcd tells its clients the one that it was given.
func freeAddress(listen string) (string, error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return "", fmt.Errorf("listen on %s: %w", listen, err)
	}
	address := l.Addr().String()
	return address, l.Close()
}

const (
	// longLease is ten years, in seconds.
	longLease = 10 * 365 * 24 * 3600
	// leasesAtOnce are changed in one transaction.
	leasesAtOnce = 10_000
)

// prolongLeases gives every lease of a database ten years: an etcd counts them from its start, and would take their keys away soon.
func prolongLeases(path string) (n int, err error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true, NoFreelistSync: true, Timeout: 5 * time.Second})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var from []byte
	for {
		var ids [][]byte
		err := db.Update(func(tx *bolt.Tx) error {
			b := tx.Bucket(schema.Lease.Name())
			if b == nil {
				return nil
			}
			c := b.Cursor()
			for k, _ := c.Seek(from); k != nil && len(ids) < leasesAtOnce; k, _ = c.Next() {
				ids = append(ids, append([]byte(nil), k...))
			}
			for _, id := range ids {
				if err := prolong(b, id); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil || len(ids) == 0 {
			return n, err
		}
		n += len(ids)
		from = append(ids[len(ids)-1], 0)
	}
}

func prolong(b *bolt.Bucket, id []byte) error {
	if len(id) != 8 {
		return fmt.Errorf("%w: a lease has the id %x", etcd.ErrBadDatabase, id)
	}
	v, err := (&leasepb.Lease{ID: int64(binary.BigEndian.Uint64(id)), TTL: longLease}).Marshal()
	if err != nil {
		return err
	}
	return b.Put(id, v)
}
