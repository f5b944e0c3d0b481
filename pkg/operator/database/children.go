package database

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// ChildMain is the program as a child of itself; ok is false if it isn't one. args are those of the
// command line without the program's name.
func ChildMain(args []string) (code int, ok bool) {
	return child.Dispatch(args, database.CheckCommand(), database.KeysCommand(), database.ValuesCommand(), changelog.ReplayCommand())
}

// Children checks databases in processes of their own, so that no file whatever can harm the caller.
type Children struct{}

// Check implements Checker.
func (Children) Check(ctx context.Context, path string) (Facts, error) {
	exe, err := os.Executable()
	if err != nil {
		return Facts{}, fmt.Errorf("check database: %w", err)
	}
	f, err := database.Check(ctx, exe, path, database.CheckOptions{})
	if err != nil {
		return Facts{}, Judged(path, err)
	}
	return Facts{
		Revision: f.Revision, CompactRevision: max(f.CompactRevision, 0), Keys: f.Keys, LeasedKeys: f.LeasedKeys,
		Records: f.Records, Leases: f.Leases,
		Members: f.Members, SizeBytes: f.SizeBytes, InUseBytes: f.InUseBytes, Hash: f.Hash.Hash, Format: f.WrittenBy(),
		TrailingHash: f.TrailingHash, facts: f,
	}, nil
}

// Keys implements Checker.
func (Children) Keys(ctx context.Context, path string, visit func(Key) error) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("read keys: %w", err)
	}
	return Judged(path, database.Keys(ctx, exe, path, func(k database.LiveKey) error {
		return visit(Key{Key: k.Key, ValueSize: k.ValueSize, Lease: k.Lease, Revision: k.ModRevision})
	}))
}

// Judged marks the errors of pkg/etcd that say that the file is bad, and takes its path out of them: it is mostly that of a temporary file.
func Judged(path string, err error) error {
	if errors.Is(err, etcd.ErrBadDatabase) || errors.Is(err, etcd.ErrBadSnapshot) {
		_, text, found := strings.Cut(err.Error(), path+": ")
		if !found {
			text = err.Error()
		}
		return &BadError{errors.New(text)}
	}
	return err
}
