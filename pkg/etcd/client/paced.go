package client

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

const (
	// pacedSpacing is how far apart the reads of a stream are on average when it never ends to bring something, pacedBurst how many need not wait.
	pacedSpacing = 20 * time.Millisecond
	pacedBurst   = 8
	// pacedBytes are read at once at most; when there is that much, nothing is waited for.
	pacedBytes = 64 << 10
	// streamWindow is how many bytes may be on their way to a client that reads now and then.
	streamWindow = 2 << 20
)

// Streams dials for streams. It counts, so that an endpoint that doesn't answer isn't tried again before the others. The zero value is ready
// for use, also concurrently; it must not be copied.
type Streams struct{ dialed atomic.Uint32 }

// Dial is like the function, for a client that follows a stream of many small messages: WatchAll has a connection of its own, which is read at
// most some fifty times a second, all that has come by then; that costs a fraction of waking up for each message. Where little comes nothing is
// late; else everything is, by pacedSpacing at most. That connection is to one endpoint, another one with each call.
func (s *Streams) Dial(endpoints []string, tlsConf *tls.Config) (*Client, error) {
	return s.DialAs(endpoints, tlsConf, User{})
}

// DialAs is Dial for one of etcd's users with a password.
func (s *Streams) DialAs(endpoints []string, tlsConf *tls.Config, user User) (*Client, error) {
	c, err := DialAs(endpoints, tlsConf, user)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	one := endpoints[int(s.dialed.Add(1))%len(endpoints)]
	dial := grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		network := "tcp"
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			network, address = "unix", strings.TrimPrefix(path, "//")
		}
		conn, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &pacedConn{Conn: conn}, nil
	})
	stream, err := connect([]string{one}, tlsConf, streamWindow, append(user.options(), dial)...)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.stream = stream
	return c, nil
}

// pacedConn spaces out its reads. Like any connection it is read by one goroutine at a time.
type pacedConn struct {
	net.Conn
	space [pacedBytes]byte
	have  []byte // what was read and not taken yet
	full  bool   // the last read left something
	// due is from when on the next read is free of waiting, less what may be saved up.
	due time.Time
}

// Read gives what was read already, else reads.
func (c *pacedConn) Read(p []byte) (int, error) {
	if len(c.have) == 0 {
		c.wait()
		n, err := c.Conn.Read(c.space[:])
		c.have, c.full = c.space[:n], n == len(c.space)
		if err != nil && n == 0 {
			return 0, err
		}
	}
	n := copy(p, c.have)
	c.have = c.have[n:]
	return n, nil
}

func (c *pacedConn) wait() {
	if c.full {
		return
	}
	now := time.Now()
	if saved := now.Add(-pacedBurst * pacedSpacing); c.due.Before(saved) {
		c.due = saved
	}
	time.Sleep(c.due.Sub(now))
	c.due = c.due.Add(pacedSpacing)
}
