// Package hosts keeps one managed block of /etc/hosts for each etcd cluster of a node.
//
// The file is shared: with the user, with the managers of other clusters, often bind-mounted into a
// container. So it is rewritten in place, on the same inode and under a lock on the file itself, and
// nothing outside of the own block is ever changed. Everything before the block isn't even written.
//
// A write in place is not atomic. Before it, the old and the new content are stored in a directory of the
// caller's (see File.KeepDir); if the process or the machine dies within the write, the next Update
// recognizes the mixture of the two and puts the new content in its place before it does anything else. A
// file that somebody has changed since is left to that somebody.
package hosts

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Entry is an address and the names that resolve to it.
type Entry struct {
	Addr  netip.Addr
	Names []string
}

// File is a hosts file. The zero value of KeepDir means that no copy is kept during a write.
type File struct {
	// Path is the hosts file, usually /etc/hosts. A symbolic link is followed. It is created if it doesn't exist.
	Path string
	// KeepDir is an existing directory on a disk that survives a restart, in which the content is kept
	// while the file is being rewritten. Several clusters may share it.
	KeepDir string
}

// lockPoll is how often a lock that another manager holds is tried again; a write takes milliseconds.
const lockPoll = 20 * time.Millisecond

// Update makes the block of the named cluster say exactly entries, and returns whether the file had to be
// written. No entries means no block. A new block goes to the end of the file; one that exists stays where it is.
//
// Update may be called concurrently, also by several processes; it waits for the others until ctx ends.
// When it returns an error, the file holds the old or the new content, or the next Update mends it.
func (f File) Update(ctx context.Context, cluster string, entries []Entry) (changed bool, err error) {
	block, err := render(cluster, entries)
	if err != nil {
		return false, fmt.Errorf("update hosts: %w", err)
	}
	if changed, err = f.update(ctx, cluster, block); err != nil {
		return changed, fmt.Errorf("update %s: %w", f.Path, err)
	}
	return changed, nil
}

func (f File) update(ctx context.Context, cluster string, block []byte) (bool, error) {
	h, err := f.open(ctx)
	if err != nil {
		return false, err
	}
	defer h.Close() // and with it the lock
	old, err := io.ReadAll(h)
	if err != nil {
		return false, err
	}
	mended, err := f.mend(h, old)
	if err != nil {
		return false, err
	}
	if mended != nil {
		old = mended
	}
	want := replaceBlock(old, cluster, block)
	if bytes.Equal(old, want) {
		return mended != nil, nil
	}
	return true, f.rewrite(h, old, want)
}

// open opens the file and locks it. The lock is on the file itself because that is all that managers in
// different containers have in common.
func (f File) open(ctx context.Context) (*os.File, error) {
	for {
		h, err := os.OpenFile(f.Path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, err
		}
		if err := lock(ctx, h); err != nil {
			h.Close()
			return nil, fmt.Errorf("lock (another manager holds it): %w", err)
		}
		// An editor may have renamed another file over it while we waited.
		if mine, err := h.Stat(); err == nil {
			if named, err := os.Stat(f.Path); err == nil && os.SameFile(mine, named) {
				return h, nil
			}
		}
		h.Close()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

func lock(ctx context.Context, h *os.File) error {
	ticker := time.NewTicker(lockPoll)
	defer ticker.Stop()
	for {
		err := syscall.Flock(int(h.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// rewrite replaces old by want in place, having stored both before.
func (f File) rewrite(h *os.File, old, want []byte) error {
	if err := f.keep(old, want); err != nil {
		return err
	}
	if err := writeInPlace(h, old, want); err != nil {
		// A full disk can leave a mixture; try to go back while we are here. If that fails too, the kept copy helps later.
		if back := writeInPlace(h, want, old); back == nil {
			return errors.Join(err, f.forget())
		}
		return err
	}
	return f.forget()
}

// writeInPlace writes only from the first byte that differs, never shortens the file before the rest is
// written, and syncs: at no moment is there less in the file than there was.
func writeInPlace(h *os.File, old, want []byte) error {
	from := 0
	for from < len(old) && from < len(want) && old[from] == want[from] {
		from++
	}
	if _, err := h.WriteAt(want[from:], int64(from)); err != nil {
		return err
	}
	if err := h.Truncate(int64(len(want))); err != nil {
		return err
	}
	return h.Sync()
}

// Blocks lists the names of the clusters that have a block in the file, in the order of the file. A file that doesn't exist has none.
func (f File) Blocks() ([]string, error) {
	data, err := os.ReadFile(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read hosts: %w", err)
	}
	var names []string
	for _, l := range splitLines(data) {
		if kind, name := marker(l); kind == begin && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// render makes the block, sorted, one line for each address; nil for no entries.
func render(cluster string, entries []Entry) ([]byte, error) {
	if cluster == "" || strings.ContainsAny(cluster, "]\r\n") {
		return nil, fmt.Errorf("cluster name %q can't name a block", cluster)
	}
	names := map[netip.Addr][]string{}
	for _, e := range entries {
		if !e.Addr.IsValid() {
			return nil, fmt.Errorf("names %v have no valid address", e.Names)
		}
		for _, n := range e.Names {
			if n == "" || strings.ContainsAny(n, "# \t\r\n\v\f\x00") {
				return nil, fmt.Errorf("%q is not a host name", n)
			}
		}
		addr := e.Addr.Unmap()
		names[addr] = append(names[addr], e.Names...)
	}
	var addrs []netip.Addr
	for a, n := range names {
		if len(n) > 0 {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) == 0 {
		return nil, nil
	}
	slices.SortFunc(addrs, func(a, b netip.Addr) int { return cmp.Or(a.Compare(b), strings.Compare(a.Zone(), b.Zone())) })
	var b bytes.Buffer
	b.WriteString(beginLine(cluster) + "\n")
	for _, a := range addrs {
		n := names[a]
		slices.Sort(n)
		b.WriteString(a.String() + "\t" + strings.Join(slices.Compact(n), " ") + "\n")
	}
	b.WriteString(endLine(cluster) + "\n")
	return b.Bytes(), nil
}
