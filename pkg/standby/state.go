package standby

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

const (
	stateFile    = "standby.json"
	stateVersion = 1
)

// copyFile is the name of a copy: a new full backup gets a new one.
var copyFile = regexp.MustCompile(`^copy-[0-9]{1,9}\.db$`)

// held says what the copy on this node is. It is written after the database was, and only raises what it says of it: so the copy has
// everything up to Revision whenever the process is killed.
type held struct {
	Version int `json:"version"`
	// Store is the other cluster's.
	Store string `json:"store"`
	// File is the database's name beside this file, Number the one in it.
	File   string `json:"file"`
	Number int    `json:"number"`
	// Incarnation is what is followed, Base the full backup that the copy began with, and Began when that was fetched.
	Incarnation  catalog.Incarnation `json:"incarnation"`
	Base         string              `json:"base"`
	BaseRevision int64               `json:"baseRevision"`
	BaseBytes    int64               `json:"baseBytes"`
	Began        time.Time           `json:"began"`
	// Revision is what the copy has; Head is the last segment that was applied, empty if none was; Until is up to when the copy has
	// everything.
	Revision int64     `json:"revision"`
	Head     string    `json:"head,omitempty"`
	Until    time.Time `json:"until"`
	// Compared is the last comparison with a newer full backup.
	Compared *Compared `json:"compared,omitempty"`
}

// Compared is the outcome of a comparison: what the copy had at a revision, and what a full backup with the changes behind it has there.
type Compared struct {
	Backup   string    `json:"backup"`
	At       time.Time `json:"at"`
	Revision int64     `json:"revision"`
	HashKV   uint32    `json:"hashKV"`
	// Differs says in words what was not the same; empty if all was.
	Differs string `json:"differs,omitempty"`
}

func (h *held) head() (catalog.SegmentName, bool) {
	n, err := catalog.ParseSegmentName(h.Head)
	return n, err == nil
}

// load reads what is held; nil if nothing is that can be used, which is said in why.
func load(dir, store string) (h *held, why string, err error) {
	path := filepath.Join(dir, stateFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("read %s: %w", path, err)
	}
	h = &held{}
	if err := json.Unmarshal(b, h); err != nil {
		return nil, fmt.Sprintf("%s can't be read (%v)", path, err), nil
	}
	switch {
	case h.Version > stateVersion:
		return nil, "", fmt.Errorf("%s was written by a newer version of etcd-manager: run that, or remove the file, then the copy is "+
			"made anew", path)
	case h.Store != store:
		return nil, "it is a copy of what " + h.Store + " keeps", nil
	case !copyFile.MatchString(h.File) || h.Revision < 1:
		return nil, path + " makes no sense", nil
	}
	if _, err := os.Stat(filepath.Join(dir, h.File)); err != nil {
		return nil, "its database can't be found: " + err.Error(), nil
	}
	return h, "", nil
}

func (h *held) store(dir string) error {
	h.Version = stateVersion
	b, err := json.MarshalIndent(h, "", "  ")
	if err == nil {
		err = atomicfile.Write(filepath.Join(dir, stateFile), append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("note how far the copy is: %w", err)
	}
	return nil
}

// sweep removes copies that nothing refers to. keep are names of databases.
func sweep(dir string, keep ...string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for old copies: %w", err)
	}
	var errs []error
	for _, e := range entries {
		of := strings.TrimSuffix(strings.TrimSuffix(e.Name(), ".tmp"), filepath.Ext(database.LeasesFile("")))
		kept := !copyFile.MatchString(of)
		for _, k := range keep {
			kept = kept || of == k
		}
		if !kept {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
