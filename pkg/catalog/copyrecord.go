package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// CopyRecord says that a store is a copy of another one. Managers don't run on a store with such a record, until somebody has put the
// copy into use.
type CopyRecord struct {
	// Of is the URL of the first store, and ClusterName its cluster's: nothing is copied here from any other.
	Of          string `json:"of"`
	ClusterName string `json:"clusterName"`
	// Began is when the copy began; Term and Node are the leadership that copies, and At when it last wrote this, by that node's clock.
	Began time.Time      `json:"began"`
	Term  cluster.Term   `json:"term"`
	Node  cluster.NodeID `json:"node"`
	At    time.Time      `json:"at"`
	// Compared is when the last whole comparison of both stores began of which everything was copied; zero if there was none yet.
	Compared time.Time `json:"compared,omitzero"`
	// Through is, for each incarnation, the name of the segment up to which everything that the first store keeps was copied.
	Through map[Incarnation]string `json:"through,omitempty"`
	// Store is which first store it is a copy of (control/copies.json there): another one may have the same URL. Bad are objects of the
	// first store that can't be copied, and why.
	Store string            `json:"store,omitempty"`
	Bad   map[string]string `json:"bad,omitempty"`
	// InUse is when the copy was put into use as a store of its own; zero for a copy.
	InUse time.Time `json:"inUse,omitzero"`
}

const (
	copyKey     = controlPrefix + "copy.json"
	copyVersion = 1
	copyWay     = "if the store is a copy, delete it or choose another place for --backup-store-copy; if managers run on it, delete the object"
)

type copyJSON struct {
	Version int `json:"version"`
	CopyRecord
}

// CopyRecord reads whether the store is a copy, and the version of the record; ErrNotFound if it isn't one.
func (c *Catalog) CopyRecord(ctx context.Context) (CopyRecord, string, error) {
	data, info, err := c.read(ctx, copyKey, copyWay)
	if noPlace(err) {
		return CopyRecord{}, "", fmt.Errorf("read %s: %w", copyKey, ErrNotFound)
	}
	if err != nil {
		return CopyRecord{}, info.Version, err
	}
	var j copyJSON
	if err := decodeOwn(copyKey, copyWay, data, copyVersion, &j); err != nil {
		return CopyRecord{}, info.Version, err
	}
	if j.Of == "" || j.ClusterName == "" {
		return CopyRecord{}, info.Version, corrupt(copyKey, copyWay, errors.New("it names no store or no cluster"))
	}
	for id, name := range j.Through {
		_, err := ParseSegmentName(name)
		if err = cmp.Or(validName("incarnation", string(id)), err); err != nil {
			return CopyRecord{}, info.Version, corrupt(copyKey, copyWay, err)
		}
	}
	return j.CopyRecord, info.Version, nil
}

// PutCopyRecord writes the record in the place of the version that was read; an empty version means that there must be none. It returns the
// new version. It fails with ErrConflict if somebody else was faster.
func (c *Catalog) PutCopyRecord(ctx context.Context, r CopyRecord, version string) (string, error) {
	r.At = c.now().UTC()
	data, err := encodeOwn(copyJSON{Version: copyVersion, CopyRecord: r})
	if err != nil {
		return "", err
	}
	opts := blob.PutOptions{IfAbsent: true}
	if version != "" {
		opts = blob.PutOptions{IfVersion: version}
	}
	return c.write(ctx, copyKey, data, opts)
}

// CopyReport says how a copy of the store does.
type CopyReport struct {
	// Name is the copy's URL.
	Name string `json:"name"`
	// Archived is the newest revision whose changes are in the copy, and Until up to when the copy has every change that is kept; zero if
	// that isn't known yet.
	Archived int64     `json:"archivedRevision,omitempty"`
	Until    time.Time `json:"archivedUntil,omitzero"`
	// NewestBackup is when the newest backup in the copy was begun; zero if there is none, or none is known. Backups is how many there
	// are, 0 if not counted. Missing is how many have to be copied still, as far as it is known.
	NewestBackup time.Time `json:"newestBackup,omitzero"`
	Backups      int       `json:"backups,omitempty"`
	Missing      int       `json:"missingBackups,omitempty"`
	// Compared is when all of both stores was last compared; zero if it wasn't yet.
	Compared time.Time `json:"compared,omitzero"`
	// Objects is how many backups and segments were copied since the manager leads, Bytes how many bytes they have.
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
	// Error says what fails, Since since when; empty if all is well. Held says what isn't removed although it should be.
	Error string    `json:"error,omitempty"`
	Since time.Time `json:"failingSince,omitzero"`
	Held  string    `json:"notRemoved,omitempty"`
}

// Empty tells whether the store has nothing at all. What the probe of a store leaves doesn't count.
func (c *Catalog) Empty(ctx context.Context) (bool, error) {
	for e, err := range c.store.List(ctx, "", blob.ListOptions{}) {
		if noPlace(err) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("list the store: %w", err)
		}
		if !strings.HasPrefix(e.Key, blob.ProbePrefix) {
			return false, nil
		}
	}
	return true, nil
}

// noPlace tells a directory that doesn't exist yet: the first write makes it.
func noPlace(err error) bool { return errors.Is(err, ErrInvalid) && errors.Is(err, fs.ErrNotExist) }

// CopyError says that a store is a copy, on which managers don't run.
type CopyError struct {
	CopyRecord
	// Store is the URL of the copy.
	Store string
}

// Error names the store that it is a copy of, and the way out.
func (e *CopyError) Error() string {
	return fmt.Sprintf("this store is a copy of %s (cluster %s), and no manager runs on a copy. If that store is lost, put the copy into "+
		"use: etcd-manager-ctl --backup-store=%s use-copy. Else give --backup-store the first store", e.Of, e.ClusterName, e.Store)
}

// RefuseCopy fails with a *CopyError if the store, which has this URL, is a copy that nobody has put into use.
func (c *Catalog) RefuseCopy(ctx context.Context, url string) error {
	r, _, err := c.CopyRecord(ctx)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case r.InUse.IsZero():
		return &CopyError{r, url}
	}
	return nil
}

// UseCopy makes a copy a store of its own: managers may run on it, and nothing is copied to it any more. changed is false if that was
// done before. ErrNotFound says that the store isn't a copy.
func (c *Catalog) UseCopy(ctx context.Context) (r CopyRecord, changed bool, err error) {
	for range servingAttempts {
		r, version, err := c.CopyRecord(ctx)
		if err != nil || !r.InUse.IsZero() {
			return r, false, err
		}
		r.InUse = c.now().UTC()
		// Records of managers that were started on the copy would keep a new leader waiting for them.
		if _, err := c.remove(ctx, discoveryPrefix, func(string) bool { return true }); err != nil {
			return r, false, fmt.Errorf("remove %s: %w", discoveryPrefix, err)
		}
		if _, err = c.PutCopyRecord(ctx, r, version); err == nil || !errors.Is(err, ErrConflict) {
			return r, err == nil, err
		}
	}
	return CopyRecord{}, false, fmt.Errorf("write %s: lost %d races: %w", copyKey, servingAttempts, ErrTransient)
}
