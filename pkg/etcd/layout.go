package etcd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
)

func markerPath(dataDir string) string { return filepath.Join(dataDir, "member", "staged.json") }

// unmarkStaged is called before an etcd is started on a data dir.
func unmarkStaged(dataDir string) error {
	err := os.Remove(markerPath(dataDir))
	if err == nil {
		return atomicfile.SyncDir(filepath.Dir(markerPath(dataDir)))
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return fmt.Errorf("remove stage marker: %w", err)
}

// dbPath is the database below a data dir.
func dbPath(dataDir string) string { return filepath.Join(dataDir, "member", "snap", "db") }
