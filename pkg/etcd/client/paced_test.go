package client

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// trickle is a connection on which a byte arrives every millisecond.
type trickle struct {
	net.Conn
	began time.Time
	taken int
	reads int
	limit int
}

func (c *trickle) Read(p []byte) (int, error) {
	c.reads++
	for {
		there := min(int(time.Since(c.began)/time.Millisecond), c.limit) - c.taken
		if there > 0 {
			n := min(there, len(p))
			for i := range n {
				p[i] = byte(c.taken + i)
			}
			c.taken += n
			return n, nil
		}
		if c.taken == c.limit {
			return 0, io.EOF
		}
		time.Sleep(time.Millisecond)
	}
}

// TestCalmConn: a stream is read now and then, all of it, in order, and what is alone isn't late.
func TestCalmConn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bytesSent = 10_000
		in := &trickle{began: time.Now(), limit: bytesSent}
		c := &pacedConn{Conn: in}
		var got []byte
		late := 0
		for p := make([]byte, 100); ; {
			n, err := c.Read(p)
			got = append(got, p[:n]...)
			if n > 0 && time.Since(in.began) > time.Duration(len(got))*time.Millisecond+pacedSpacing {
				late++
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		want := make([]byte, bytesSent)
		for i := range want {
			want[i] = byte(i)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%d bytes came of %d, or not in order", len(got), bytesSent)
		}
		if most := int(bytesSent*time.Millisecond/pacedSpacing) + pacedBurst + 2; in.reads > most {
			t.Errorf("%d reads, want at most %d", in.reads, most)
		}
		if late > 0 {
			t.Errorf("%d reads gave something that had come more than %s before", late, pacedSpacing)
		}
	})
}

// TestCalmConnAlone: what comes once in a while is read at once.
func TestCalmConnAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		c := &pacedConn{Conn: ours}
		go func() {
			for range 50 {
				time.Sleep(2 * pacedSpacing)
				_, _ = theirs.Write([]byte("x"))
			}
			_ = theirs.Close()
		}()
		began := time.Now()
		for i := range 50 {
			if _, err := c.Read(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			if at, want := time.Since(began), time.Duration(i+1)*2*pacedSpacing; at != want {
				t.Fatalf("byte %d came after %s, want %s", i, at, want)
			}
		}
	})
}

// TestCalmConnMuch: what doesn't fit into one read isn't waited for.
func TestCalmConnMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := &trickle{began: time.Now().Add(-time.Hour), limit: 3_000_000}
		c := &pacedConn{Conn: in}
		began := time.Now()
		if n, err := io.Copy(io.Discard, c); err != nil || n != 3_000_000 {
			t.Fatalf("%d bytes came, %v", n, err)
		}
		if took := time.Since(began); took > pacedSpacing {
			t.Errorf("it waited for %s", took)
		}
	})
}
