package etcd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
)

// StagedMarker is the file that says of a data dir that it is staged, and for what.
func StagedMarker(dataDir string) string { return filepath.Join(dataDir, "member", "staged.json") }

// UnmarkStaged is called before an etcd is started on a data dir.
func UnmarkStaged(dataDir string) error {
	err := os.Remove(StagedMarker(dataDir))
	if err == nil {
		return atomicfile.SyncDir(filepath.Dir(StagedMarker(dataDir)))
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return fmt.Errorf("remove stage marker: %w", err)
}

// DBPath is the database below a data dir.
func DBPath(dataDir string) string { return filepath.Join(dataDir, "member", "snap", "db") }
