package node

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestOverBytes: the trash can has a bound in bytes, and what an undo needs goes last.
func TestOverBytes(t *testing.T) {
	const gib = 1 << 30
	for name, c := range map[string]struct {
		sizes              []int64
		total, free, least int64
		want               []int
	}{
		"nothing":                  {nil, 20 * gib, 10 * gib, 5 * gib, nil},
		"three small ones":         {[]int64{gib, gib, gib}, 20 * gib, 15 * gib, 5 * gib, nil},
		"three of 4 GiB on 20 GiB": {[]int64{4 * gib, 4 * gib, 4 * gib}, 20 * gib, 4 * gib, 5 * gib, []int{1, 2}},
		"more than a quarter, though there is room":      {[]int64{8 * gib, 8 * gib, 8 * gib}, 80 * gib, 50 * gib, 5 * gib, []int{2}},
		"the newest alone stays, however large":          {[]int64{12 * gib}, 20 * gib, 2 * gib, 5 * gib, nil},
		"the newest alone goes before etcd's disk fills": {[]int64{12 * gib}, 20 * gib, 10 << 20, 5 * gib, []int{0}},
		"somebody else fills the disk":                   {[]int64{gib, gib, gib}, 20 * gib, 3 * gib, 5 * gib, []int{1, 2}},
		"the size of the disk isn't known":               {[]int64{gib, gib, gib}, 0, 0, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := slices.Sorted(maps.Keys(overBytes(c.sizes, c.total, c.free, c.least)))
			if !slices.Equal(got, c.want) {
				t.Errorf("%v go, want %v", got, c.want)
			}
		})
	}
}

// TestBytesRead: what a process has read from the disk is told for one that exists, and for no other.
func TestBytesRead(t *testing.T) {
	if _, ok := bytesRead(os.Getpid()); !ok {
		t.Error("nothing is told of this process")
	}
	if _, ok := bytesRead(1 << 30); ok {
		t.Error("something is told of a process that doesn't exist")
	}
}

// TestStopGrace: an etcd with a large database gets the time to write it before it is killed.
func TestStopGrace(t *testing.T) {
	for size, want := range map[int64]time.Duration{0: 20 * time.Second, 16 << 20: 20 * time.Second, 8 << 30: 449 * time.Second} {
		d := &disk{cfg: &Config{StopGrace: 20 * time.Second}, seen: resources{database: size}}
		if got := d.stopGrace(); got != want {
			t.Errorf("%d MiB: %s, want %s", size>>20, got, want)
		}
	}
}

// TestNameDisk: an error of a full disk names the disk, and no other error does.
func TestNameDisk(t *testing.T) {
	d := &disk{cfg: &Config{DataDir: t.TempDir()}}
	err := d.name(&os.PathError{Op: "write", Path: "etcd.pid", Err: syscall.ENOSPC})
	if !strings.Contains(err.Error(), "the disk of "+d.cfg.DataDir+" is full") {
		t.Errorf("the error says %q", err)
	}
	if err := d.name(cluster.ErrCorrupt); err != cluster.ErrCorrupt {
		t.Errorf("the error says %q", err)
	}
	total, free := diskSpace(d.cfg.DataDir)
	if total <= 0 || free <= 0 || free > total {
		t.Errorf("%d of %d bytes are free", free, total)
	}
}

// TestFullDisk: a real etcd on a small disk that somebody fills. The node says that its disk is full, what can't be written names the disk, and once
// there is room etcd goes on by itself.
func TestFullDisk(t *testing.T) {
	n := newNode(t, "a", func(s *setup) {
		if err := syscall.Mount("tmpfs", s.Dir, "tmpfs", 0, "size=512m"); err != nil {
			t.Skipf("no small disk can be mounted here: %v", err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(s.Dir, syscall.MNT_DETACH) })
	})
	s := n.state("T1", n)
	s.NewCluster = true
	n.do(startAction(s))
	n.healthy()
	must(t, os.WriteFile(filepath.Join(n.s.Dir, "filler"), nil, 0o600))
	f, err := os.OpenFile(filepath.Join(n.s.Dir, "filler"), os.O_WRONLY, 0)
	must(t, err)
	block := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	must(t, f.Close())
	eventually(t, "the node says that its disk is full", func() bool {
		st := n.status()
		return cluster.DiskFull(st.DiskTotal, st.DiskFree)
	})
	n.term++
	if _, _, err := n.try(startAction(s)); err == nil || !strings.Contains(err.Error(), "the disk of "+n.s.Dir+" is full") {
		t.Errorf("a journal that can't be written: %v", err)
	}
	must(t, os.Remove(filepath.Join(n.s.Dir, "filler")))
	eventually(t, "there is room again", func() bool {
		st := n.status()
		return !cluster.DiskFull(st.DiskTotal, st.DiskFree)
	})
	n.healthy()
	n.put("k", "v")
}
