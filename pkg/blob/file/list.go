package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// List implements blob.Store. Names are read a directory at a time.
func (s *Store) List(ctx context.Context, prefix string, opts blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return func(yield func(blob.Entry, error) bool) {
		if err := blob.CheckList(prefix, opts); err != nil {
			yield(blob.Entry{}, s.invalid("list", prefix, err))
			return
		}
		root, err := s.openBase(ctx, "list", prefix)
		if err != nil {
			yield(blob.Entry{}, err)
			return
		}
		defer root.Close()
		l := lister{ctx: ctx, root: root, prefix: prefix, opts: opts, yield: yield}
		dir, _ := path.Split(prefix)
		if _, err := l.walk(strings.TrimSuffix(dir, "/")); err != nil {
			yield(blob.Entry{}, s.fail("list", prefix, err))
		}
	}
}

type lister struct {
	ctx    context.Context
	root   *os.Root
	prefix string
	opts   blob.ListOptions
	yield  func(blob.Entry, error) bool
}

// walk yields what is below dir, "" being the base, and reports whether the caller wants more.
func (l *lister) walk(dir string) (more bool, err error) {
	for behind, rest := "", true; rest; {
		var names []string
		if names, rest, err = readSome(l.root, dir, behind, namesHeld); err != nil {
			return false, err
		}
		for _, name := range names {
			if more, err := l.name(dir, name); err != nil || !more {
				return false, err
			}
			behind = name
		}
	}
	return true, nil
}

// name yields what has a name in a directory, or stands below it, if it is asked for.
func (l *lister) name(dir, name string) (more bool, err error) {
	if err := l.ctx.Err(); err != nil {
		return false, err
	}
	key := path.Join(dir, name)
	isDir := strings.HasSuffix(name, "/")
	if isDir {
		key += "/"
	}
	if !strings.HasPrefix(key, l.prefix) && !(isDir && strings.HasPrefix(l.prefix, key)) {
		return true, nil
	}
	// Everything below a directory sorts behind its name with the slash.
	if key <= l.opts.After && !(isDir && l.opts.Delimiter == "" && strings.HasPrefix(l.opts.After, key)) {
		return true, nil
	}
	return l.entry(key, isDir)
}

func (l *lister) entry(key string, isDir bool) (more bool, err error) {
	switch {
	case isDir && l.opts.Delimiter != "" && len(key) > len(l.prefix):
		holds, err := holdsObject(l.ctx, l.root, strings.TrimSuffix(key, "/"))
		if err != nil || !holds {
			return true, err
		}
		return l.yield(blob.Entry{Info: blob.Info{Key: key}, Prefix: true}, nil), nil
	case isDir:
		return l.walk(strings.TrimSuffix(key, "/"))
	}
	fi, err := l.root.Lstat(key)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // Purged since the directory was read.
	}
	if err != nil {
		return false, err
	}
	return l.yield(blob.Entry{Info: info(key, fi)}, nil), nil
}

// namesHeld is how many names of one directory are held at a time: a store may have a million backups, each a directory of the base. A
// directory with more is read several times.
const namesHeld = 100_000

// readSome returns the names of the objects and directories in dir that come behind one, directories with a slash, in the order of keys,
// and no more than so many; rest is true if there are more. A directory that does not exist has none.
func readSome(root *os.Root, dir, behind string, most int) (names []string, rest bool, err error) {
	if first, _, _ := strings.Cut(dir, "/"); first == reserved {
		return nil, false, nil
	}
	open := dir
	if dir == "" {
		open = "."
	}
	err = readDir(root, open, func() { names, rest = nil, false }, func(e fs.DirEntry) {
		name := e.Name()
		switch {
		case dir == "" && name == reserved:
			return
		case blob.CheckKey(path.Join(dir, name)) != nil: // Not a name that a put could have made.
			return
		case e.IsDir():
			name += "/"
		case !e.Type().IsRegular():
			return
		}
		if name <= behind {
			return
		}
		if names = append(names, name); len(names) >= 2*most {
			slices.Sort(names)
			names, rest = slices.Delete(names, most, len(names)), true
		}
	})
	switch {
	case errors.Is(err, fs.ErrNotExist) || isNotDir(err):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	}
	slices.Sort(names)
	if len(names) > most {
		names, rest = names[:most], true
	}
	return names, rest, nil
}

// reopen is how often a directory is opened again that went away while it was read: a delete removes directories that it
// empties, and a put makes them again. NFS calls such a directory stale.
const reopen = 5

// readDir reads a whole directory, piece by piece. What was removed after it was opened is opened again, as it may have been made again:
// begin is called each time.
func readDir(root *os.Root, name string, begin func(), entry func(fs.DirEntry)) (err error) {
	for range reopen {
		var d *os.File
		if d, err = root.Open(name); err != nil {
			return err
		}
		begin()
		for err == nil {
			var entries []fs.DirEntry
			entries, err = d.ReadDir(1024)
			for _, e := range entries {
				entry(e)
			}
		}
		d.Close()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESTALE) {
			break
		}
	}
	return fmt.Errorf("read directory: %w", err)
}

// holdsObject reports whether there is at least one object below dir.
func holdsObject(ctx context.Context, root *os.Root, dir string) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	for behind, rest := "", true; rest; {
		var names []string
		var err error
		if names, rest, err = readSome(root, dir, behind, namesHeld); err != nil {
			return false, err
		}
		for _, name := range names {
			if !strings.HasSuffix(name, "/") {
				return true, nil
			}
			holds, err := holdsObject(ctx, root, path.Join(dir, name))
			if err != nil || holds {
				return holds, err
			}
			behind = name
		}
	}
	return false, nil
}

// Purge implements blob.Store. Directories that become empty go too, the base stays.
func (s *Store) Purge(ctx context.Context, prefix string, match func(key string) bool) (int, error) {
	var keys []string
	for e, err := range s.List(ctx, prefix, blob.ListOptions{}) {
		var be *blob.Error
		if errors.As(err, &be) {
			be.Op = "purge"
		}
		if err != nil {
			return 0, err
		}
		if match(e.Key) {
			keys = append(keys, e.Key)
		}
	}
	if len(keys) == 0 {
		return 0, nil
	}
	root, err := s.openBase(ctx, "purge", prefix)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	if err := root.Mkdir(reserved, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return 0, s.fail("purge", prefix, err)
	}
	unlock, err := s.lock(ctx, root, false)
	if err != nil {
		return 0, s.fail("purge", prefix, err)
	}
	defer unlock()
	n := 0
	var errs failures
	dirs := map[string]bool{}
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			errs.add(s.fail("purge", prefix, err))
			break
		}
		switch err := root.Remove(key); {
		case err == nil:
			n++
			dirs[path.Dir(key)] = true
		case !errors.Is(err, fs.ErrNotExist):
			errs.add(s.fail("purge", key, err), key)
		}
	}
	for dir := range dirs {
		if err := removeEmpty(root, dir); err != nil {
			errs.add(s.fail("purge", dir, err))
		}
	}
	return n, errs.join()
}

// removeEmpty removes dir and its parents as far as they are empty and syncs what lost an entry.
func removeEmpty(root *os.Root, dir string) error {
	for ; dir != "."; dir = path.Dir(dir) {
		if err := root.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			break // Not empty, or not ours to remove: an empty directory is harmless.
		}
	}
	err := syncDir(root, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// failures joins errors, the first few in full: thousands of files can fail for one reason. Each file that stays is named in one of them.
type failures struct {
	errs []error
	// last is the one that stands for all further ones, and how many they are.
	last *blob.Error
	more int
}

func (f *failures) add(err error, keys ...string) {
	var e *blob.Error
	if errors.As(err, &e) {
		e.Keys = keys
	}
	switch {
	case len(f.errs) < 5:
		f.errs = append(f.errs, err)
		return
	case e != nil && len(keys) > 0 && f.last == nil:
		f.last = e
	case f.last != nil:
		f.last.Keys = append(f.last.Keys, keys...)
	}
	f.more++
}

func (f *failures) join() error {
	switch {
	case f.last != nil:
		f.last.Err = fmt.Errorf("%w (%d more failed)", f.last.Err, f.more-1)
		f.errs = append(f.errs, f.last)
	case f.more > 0:
		f.errs = append(f.errs, fmt.Errorf("and %d more failed", f.more))
	}
	return errors.Join(f.errs...)
}

func isNotDir(err error) bool { return errors.Is(err, syscall.ENOTDIR) }
