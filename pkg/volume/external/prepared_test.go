package external

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/volume"
)

// said keeps what the provider says.
type said struct {
	mu   sync.Mutex
	text string
}

func (s *said) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text += fmt.Sprintf(format, args...) + "\n"
}

func (s *said) has(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.text, text)
}

func mkdir(t *testing.T, parts ...string) string {
	t.Helper()
	dir := filepath.Join(parts...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestPrepared: the one directory with the prefix is taken, whenever it appears; others are left alone.
func TestPrepared(t *testing.T) {
	root := t.TempDir()
	disks := mkdir(t, root, Disks)
	mkdir(t, disks, "example.com--events--0", Mount)
	mkdir(t, disks, "example.com--main--9") // without its directory of data
	if err := os.WriteFile(filepath.Join(disks, "example.com--main--file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var s said
	p := &Prepared{Root: root, Prefix: "example.com--main--", Say: s.say, Poll: time.Millisecond}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got := make(chan *PreparedVolume, 1)
	go func() {
		v, err := p.Acquire(ctx)
		if err != nil {
			t.Error(err)
		}
		got <- v
	}()
	for !s.has("there is no directory " + filepath.Join(disks, "example.com--main--*", Mount)) {
		select {
		case <-ctx.Done():
			t.Fatal("it isn't said what is waited for")
		case <-time.After(time.Millisecond):
		}
	}
	dir := mkdir(t, disks, "example.com--main--0", Mount)
	v := <-got
	if v == nil || v.Name != "example.com--main--0" || v.Dir != dir {
		t.Fatalf("got %+v", v)
	}
	if err := v.Check(); err != nil {
		t.Error(err)
	}
	// What is there instead of it isn't the volume.
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := v.Check(); !errors.Is(err, volume.ErrNotMounted) {
		t.Errorf("a directory that is gone: %v", err)
	}
	mkdir(t, dir)
	if err := v.Check(); !errors.Is(err, volume.ErrNotMounted) {
		t.Errorf("another directory: %v", err)
	}
}

// TestTwoPrepared: two that could be this node's are both named, and neither is taken until one is gone.
func TestTwoPrepared(t *testing.T) {
	root := t.TempDir()
	a, b := mkdir(t, root, Disks, "x--main--0", Mount), mkdir(t, root, Disks, "x--main--1", Mount)
	var s said
	p := &Prepared{Root: root, Prefix: "x--main--", Say: s.say, Poll: time.Millisecond}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if v, err := p.Acquire(ctx); err == nil {
		t.Fatalf("took %+v", v)
	}
	if !s.has(a+" and "+b) || !s.has("none is used") {
		t.Errorf("said: %s", s.text)
	}
	if err := os.RemoveAll(filepath.Dir(b)); err != nil {
		t.Fatal(err)
	}
	if v, err := p.Acquire(t.Context()); err != nil || v.Dir != a {
		t.Errorf("got %+v, %v", v, err)
	}
}
