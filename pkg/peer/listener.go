package peer

import (
	"net"
	"sync"
)

const (
	// maxPerHost is how many connections one address may have at a time. A manager has one to each other manager, and a few more while it moves.
	maxPerHost = 64
	// maxConnections is how many there may be in all.
	maxConnections = 512
)

// Limit returns a listener that closes connections beyond what managers need, at once: they could be many, and cost memory before they have shown a certificate.
func Limit(l net.Listener) net.Listener {
	return &limited{Listener: l, hosts: map[string]int{}}
}

type limited struct {
	net.Listener

	mu    sync.Mutex
	hosts map[string]int // open connections, by address
	all   int
}

// Accept returns the next connection that is within the limits.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(c.RemoteAddr().String())
		if err != nil {
			host = c.RemoteAddr().String()
		}
		if !l.take(host) {
			_ = c.Close() // nobody has a use for its error
			continue
		}
		return &limitedConn{Conn: c, release: sync.OnceFunc(func() { l.release(host) })}, nil
	}
}

func (l *limited) take(host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= maxConnections || l.hosts[host] >= maxPerHost {
		return false
	}
	l.all++
	l.hosts[host]++
	return true
}

func (l *limited) release(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.hosts[host]--; l.hosts[host] == 0 {
		delete(l.hosts, host)
	}
}

type limitedConn struct {
	net.Conn
	release func()
}

// Close closes it, and makes room for another.
func (c *limitedConn) Close() error {
	c.release()
	return c.Conn.Close()
}
