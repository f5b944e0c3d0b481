package database

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// SpareSpace is what stays free on a file system that is written to, in bytes.
const SpareSpace = 64 << 20

// NoSpaceError says that a directory's file system has too little space.
type NoSpaceError struct {
	Dir string
	// Free and Need are in bytes. Need is 0 if it isn't known; SpareSpace comes on top.
	Free, Need int64
}

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("%s has too little disk space: %d MiB free, %d MiB needed (and %d MiB to spare)", e.Dir,
		e.Free>>20, (e.Need+(1<<20)-1)>>20, SpareSpace>>20)
}

// CheckSpace fails with a *NoSpaceError if a directory's file system has no place for that many bytes more. need is 0 if it isn't known.
func CheckSpace(dir string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look for disk space in %s: %w", dir, err)
	}
	free := int64(st.Bavail) * int64(st.Bsize) //nolint:unconvert // other systems have other types
	if free < need+SpareSpace {
		return &NoSpaceError{dir, free, need}
	}
	return nil
}

// TempDirError says that no temporary directory can be made.
type TempDirError struct{ Err error }

func (e *TempDirError) Error() string { return fmt.Sprintf("make temporary directory: %v", e.Err) }

// Unwrap gives the cause.
func (e *TempDirError) Unwrap() error { return e.Err }

// scratchPrefix begins the names of the directories that Scratch makes.
const scratchPrefix = "etcd-manager-ctl-"

// Scratch makes a directory that nobody else uses, below dir, or the system's directory for
// temporary files if dir is empty. remove takes it away.
func Scratch(dir string) (path string, remove func(), err error) {
	if dir == "" {
		dir = os.TempDir()
	}
	return Claim(dir, scratchPrefix)
}

// Plain returns the path of a file that holds what a snapshot file does, decompressed: the file
// itself, or a temporary one below dir. remove takes that away. What is no file that can be read is
// a *FileError.
func Plain(ctx context.Context, file, dir string) (path string, remove func(), err error) {
	in, err := os.Open(file)
	if err != nil {
		return "", nil, &FileError{err}
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return "", nil, fmt.Errorf("look at %s: %w", file, err)
	}
	if !fi.Mode().IsRegular() {
		return "", nil, &FileError{fmt.Errorf("%s is not a regular file", file)}
	}
	magic := make([]byte, 2)
	if n, _ := in.ReadAt(magic, 0); n < 2 || !bytes.Equal(magic, []byte{0x1f, 0x8b}) { // a file that short is refused by the check
		return file, func() {}, nil
	}
	scratch, remove, err := Scratch(dir)
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(scratch, "snapshot.db")
	if err := gunzip(ctx, in, fi.Size(), path); err != nil {
		remove()
		return "", nil, fmt.Errorf("nothing was imported: decompress %s: %w", file, err)
	}
	return path, remove, nil
}

// FileError says that what was named is no file that can be read.
type FileError struct{ Err error }

func (e *FileError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *FileError) Unwrap() error { return e.Err }

// gunzip looks for disk space again and again, for nobody knows how large it becomes.
func gunzip(ctx context.Context, in io.Reader, size int64, path string) (err error) {
	if err := CheckSpace(filepath.Dir(path), size); err != nil {
		return err
	}
	z, err := gzip.NewReader(in)
	if err != nil {
		return err
	}
	defer z.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	for {
		if err := errors.Join(ctx.Err(), CheckSpace(filepath.Dir(path), 0)); err != nil {
			return err
		}
		_, err := io.CopyN(out, z, SpareSpace/2)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// OpenSnapshot opens a file as a snapshot stream: with the SHA-256 at its end that a copied database lacks.
func OpenSnapshot(path string, f Facts) (io.ReadCloser, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	if f.TrailingHash {
		return in, nil
	}
	return &hashingFile{File: in, sum: sha256.New()}, nil
}
