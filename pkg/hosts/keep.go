package hosts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
)

// kept is what is stored beside a write in place: enough to recognize a mixture and to finish the write.
type kept struct {
	// Path is the file that was being written.
	Path string `json:"path"`
	// Old and New are the whole content before and after.
	Old []byte `json:"old"`
	New []byte `json:"new"`
}

// keptPath is the name of the copy. The lock admits one write at a time, so one for each file is enough, and
// whichever cluster comes first after a crash mends it.
func (f File) keptPath() string {
	return filepath.Join(f.KeepDir, "hosts-"+url.PathEscape(f.Path)+".pending")
}

func (f File) keep(old, want []byte) error {
	if f.KeepDir == "" {
		return nil
	}
	data, err := json.Marshal(kept{Path: f.Path, Old: old, New: want})
	if err != nil {
		return err
	}
	if err := atomicfile.Write(f.keptPath(), data, 0o600); err != nil {
		return fmt.Errorf("keep a copy before rewriting: %w", err)
	}
	return nil
}

func (f File) forget() error {
	if f.KeepDir == "" {
		return nil
	}
	if err := os.Remove(f.keptPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// mend looks for the copy of a write that was not finished. If the file is a mixture of before and after,
// the write is finished and the content returned; otherwise nil: the write never began, had ended, or
// somebody has changed the file since.
func (f File) mend(h *os.File, now []byte) ([]byte, error) {
	if f.KeepDir == "" {
		return nil, nil
	}
	data, err := os.ReadFile(f.keptPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the copy of an unfinished write: %w", err)
	}
	var k kept
	// A copy that can't be read is no copy: it is written atomically, so nothing was begun with it.
	if json.Unmarshal(data, &k) != nil || k.Path != f.Path || string(now) == string(k.Old) ||
		string(now) == string(k.New) || !mixture(now, k.Old, k.New) {
		return nil, f.forget()
	}
	if err := writeInPlace(h, now, k.New); err != nil {
		return nil, fmt.Errorf("finish an unfinished write: %w", err)
	}
	return k.New, f.forget()
}

// mixture tells whether now can be what a write of new over old left behind: byte by byte one of the two,
// or zero where a power cut lost what was written beyond the old end; and as long as one of the two. An
// empty file counts if the old one wasn't: a crash of the file system can lose all of it.
func mixture(now, old, want []byte) bool {
	if len(now) == 0 {
		return true
	}
	if len(now) != len(old) && len(now) != len(want) && (len(now) < len(old) || len(now) > len(want)) {
		return false
	}
	for i, b := range now {
		fromOld := i < len(old) && b == old[i]
		fromNew := i < len(want) && b == want[i]
		lost := i >= len(old) && b == 0
		if !fromOld && !fromNew && !lost {
			return false
		}
	}
	return true
}
