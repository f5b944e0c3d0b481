package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// TestPurgeNamesWhatStays: every file that can't be removed is named, also more of them than the message tells, and the others go.
func TestPurgeNamesWhatStays(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can make files that nobody can remove (chattr +i)")
	}
	dir := t.TempDir()
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	var stay []string
	for i := range 12 {
		key := fmt.Sprintf("b%02d/data", i)
		if _, err := s.Put(t.Context(), key, strings.NewReader("x"), blob.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			continue
		}
		file := filepath.Join(dir, key)
		if out, err := exec.Command("chattr", "+i", file).CombinedOutput(); err != nil {
			t.Skipf("this file system has no immutable files: %v: %s", err, out)
		}
		t.Cleanup(func() {
			if out, err := exec.Command("chattr", "-i", file).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
		stay = append(stay, key)
	}
	n, err := s.Purge(t.Context(), "", func(string) bool { return true })
	refused, rest := blob.SplitRefused(fmt.Errorf("delete: %w", err))
	var named []string
	for _, e := range refused {
		if !errors.Is(e, blob.ErrDenied) {
			t.Errorf("%v is no denial", e)
		}
		named = append(named, e.Keys...)
	}
	slices.Sort(named)
	if n != 4 || len(rest) != 0 || !slices.Equal(named, stay) || len(refused) != 6 {
		t.Errorf("%d went, %d errors name %v, and there are %v; these stay: %v", n, len(refused), named, rest, stay)
	}
}

// TestPublishChecksContext: a put whose context has ended by the time that it has the lock doesn't appear.
func TestPublishChecksContext(t *testing.T) {
	dir := t.TempDir()
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := makeBase(filepath.Join(dir, reserved)); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 50 { // the lock may be had all the same
		for _, opts := range []blob.PutOptions{{}, {IfAbsent: true}} {
			tmp, _, err := writeTemp(t.Context(), root, strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.publish(ctx, root, tmp, "k", opts); !errors.Is(err, context.Canceled) {
				t.Fatalf("after %d attempts: %v", i, err)
			}
		}
	}
}
