package node

import (
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// versionsPoll is how often it is looked which etcds are installed.
const versionsPoll = 30 * time.Second

// versions knows which etcds are installed on this node. All methods may be called concurrently.
type versions struct {
	cfg     *Config
	changes *changes
	looking sync.Mutex // one look at a time

	mu       sync.Mutex // guards what follows
	versions []string
	at       time.Time
	// unused are the executables of etcd that aren't used, and why.
	unused []string
}

// known are the etcds that this node can run. Only the first look is waited for.
func (i *versions) known() []string {
	i.mu.Lock()
	first, due := i.at.IsZero(), time.Since(i.at) >= versionsPoll
	i.mu.Unlock()
	if first {
		i.look()
	} else if due && i.looking.TryLock() {
		go func() {
			defer i.looking.Unlock()
			i.read()
		}()
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.versions)
}

// look looks for the first time; who comes meanwhile waits for it.
func (i *versions) look() {
	i.looking.Lock()
	defer i.looking.Unlock()
	i.mu.Lock()
	done := !i.at.IsZero()
	i.mu.Unlock()
	if !done {
		i.read()
	}
}

// read looks which etcds are installed, and says in one line which aren't used, when that has changed.
func (i *versions) read() {
	found := i.cfg.Binaries.Installed()
	i.mu.Lock()
	defer i.mu.Unlock()
	if !slices.Equal(found.Versions, i.versions) && !i.at.IsZero() {
		i.changes.note()
	}
	i.versions, i.at = found.Versions, time.Now()
	if slices.Equal(found.Problems, i.unused) {
		return
	}
	i.unused = found.Problems
	const shown = 3
	if n := len(i.unused); n > 0 {
		klog.Warningf("Not used as etcd (%d in all): %s%s", n, strings.Join(i.unused[:min(n, shown)], "; "), map[bool]string{true: "; …"}[n > shown])
	}
}
