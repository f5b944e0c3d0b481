package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// childMain is the tool as a child of itself; ok is false if it isn't one.
func childMain(args []string) (code int, ok bool) {
	if len(args) == 0 {
		return 0, false
	}
	switch args[0] {
	case etcd.ProveSubcommand:
		return etcd.ProveMain(args[1:]), true
	case etcd.KeysSubcommand:
		return etcd.KeysMain(args[1:]), true
	case etcd.ReplaySubcommand:
		return changelog.ReplayMain(args[1:]), true
	case etcd.ValuesSubcommand:
		return etcd.ValuesMain(args[1:]), true
	}
	return 0, false
}

// children checks databases in processes of their own, so that no file whatever can harm the caller.
type children struct{}

func newChecker() checker { return children{} }

func (children) prove(ctx context.Context, path string) (facts, error) {
	exe, err := os.Executable()
	if err != nil {
		return facts{}, fmt.Errorf("check database: %w", err)
	}
	f, err := etcd.Prove(ctx, exe, path, etcd.ProveOptions{})
	if err != nil {
		return facts{}, judged(path, err)
	}
	return facts{
		Revision: f.Revision, CompactRevision: max(f.CompactRevision, 0), Keys: f.Keys, LeasedKeys: f.LeasedKeys, Records: f.Records, Leases: f.Leases,
		Members: f.Members, SizeBytes: f.SizeBytes, InUseBytes: f.InUseBytes, Hash: f.Hash.Hash, Format: f.WrittenBy(), TrailingHash: f.TrailingHash, fits: f.FitsVersion,
	}, nil
}

func (children) keys(ctx context.Context, path string, visit func(liveKey) error) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("read keys: %w", err)
	}
	return judged(path, etcd.Keys(ctx, exe, path, func(k etcd.LiveKey) error {
		return visit(liveKey{key: k.Key, valueSize: k.ValueSize, lease: k.Lease, revision: k.ModRevision})
	}))
}

// judged marks the errors that say that the file is bad, and takes its path out of them: it is mostly that of a temporary file.
func judged(path string, err error) error {
	if errors.Is(err, etcd.ErrBadDatabase) || errors.Is(err, etcd.ErrBadSnapshot) {
		_, text, found := strings.Cut(err.Error(), path+": ")
		if !found {
			text = err.Error()
		}
		return &badDatabase{errors.New(text)}
	}
	return err
}
