package node

import (
	"fmt"
	"os"
)

// Lock makes sure that no other manager uses a data dir, until the file is closed. An Agent takes the lock itself.
func Lock(dataDir string) (*os.File, error) {
	l := layout(dataDir)
	if err := os.MkdirAll(l.own(), 0o700); err != nil {
		return nil, fmt.Errorf("open data dir: %w", err)
	}
	return lockDataDir(l.lock())
}
