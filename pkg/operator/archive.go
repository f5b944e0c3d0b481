package operator

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/kube"
	"github.com/etcd-manager/etcd-manager/pkg/operator/database"
)

// Change is one entry of a history: a change of a key, or a note on what lies between the changes before and behind it.
type Change = changelog.Event

// HistoryRequest picks changes; what is zero picks nothing.
type HistoryRequest struct {
	// Prefix is what keys begin with. Namespace is a Kubernetes namespace: what is in it, and itself.
	Prefix, Namespace string
	// Since and Until are moments, From and To revisions; all of them belong to the range.
	Since, Until time.Time
	From, To     int64
	// Deletes picks only what was deleted, and notes.
	Deletes bool
}

// History yields the changes that are kept between backups, in their order, through all
// incarnations of the cluster. Where changes are lacking, and where a restore took place, a note
// says so. An error ends the sequence.
func (c *Client) History(ctx context.Context, r HistoryRequest) iter.Seq2[Change, error] {
	in := changelog.Range{Since: r.Since, Until: r.Until, From: r.From, To: r.To}
	switch {
	case r.Namespace != "":
		namespace, prefix := kube.InNamespace(r.Namespace), changelog.HasPrefix(r.Prefix)
		in.Match = func(key []byte) bool { return prefix(key) && namespace(key) }
	case r.Prefix != "":
		in.Match = changelog.HasPrefix(r.Prefix)
	}
	return func(yield func(Change, error) bool) {
		for e, err := range c.archive.History(ctx, in) {
			if err == nil && r.Deletes && e.Note == "" && !e.Deleted {
				continue
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Deletion is the newest deletion of a key, or of what is below a prefix, and the revision before it.
type Deletion = changelog.Before

// BeforeRequest says whose deletion is looked for.
type BeforeRequest struct {
	// Key is a prefix if it ends with a slash, or if Prefix is true.
	Key    string
	Prefix bool
	// Until is the moment, UntilRevision the revision, from which on backwards is looked; at most one is set.
	Until         time.Time
	UntilRevision int64
}

// Before finds the revision before the newest deletion of a key, or of what is below a prefix. What Kubernetes marked first counts as being
// deleted from then on; of a namespace, what was deleted in it meanwhile is counted. It is ErrNotFound if nothing was deleted.
func (c *Client) Before(ctx context.Context, r BeforeRequest) (*Deletion, error) {
	if r.Key == "" || r.UntilRevision < 0 || r.UntilRevision > 0 && !r.Until.IsZero() {
		return nil, invalidf("a search for a deletion needs a key, and at most one of a time and a revision to begin at")
	}
	d := changelog.Deleted{Key: r.Key, Prefix: r.Prefix || strings.HasSuffix(r.Key, "/"), Dying: kube.DeletionAsked,
		Until: r.Until, UntilRevision: r.UntilRevision}
	if namespace, ok := strings.CutPrefix(r.Key, kube.NamespacesPrefix); ok && !d.Prefix {
		d.With = kube.InNamespace(namespace)
	}
	return c.archive.LastBefore(ctx, d)
}

// ExtractRequest says which keys are read, and as of when.
type ExtractRequest struct {
	// Key is a key, or with Prefix what keys begin with. Namespace, instead of it, is a Kubernetes
	// namespace: all that was in it, and itself.
	Key       string
	Prefix    bool
	Namespace string
	// At is the moment, Revision the revision; with neither it is the last one that is kept.
	At       time.Time
	Revision int64
	VerifyOptions
}

func (r ExtractRequest) check() error {
	switch {
	case r.Namespace != "" && r.Key != "", r.Namespace == "" && r.Key == "":
		return invalidf("a key or a namespace is needed, not both")
	case !r.At.IsZero() && r.Revision != 0, r.Revision < 0:
		return invalidf("a time or a positive revision can be given, not both")
	}
	return nil
}

func (r ExtractRequest) wanted() changelog.Wanted {
	if r.Namespace != "" {
		return changelog.Wanted{Key: kube.Registry, Prefix: true, Match: kube.InNamespace(r.Namespace)}
	}
	return changelog.Wanted{Key: r.Key, Prefix: r.Prefix}
}

// Extracted are keys with their values as they were, and the plan by which they were read.
type Extracted = changelog.Extracted

// Extract reads a key, or all keys of a prefix or a namespace, as they were. Nothing is restored. A
// single key that isn't there is ErrNotFound; of many there may be none. Package putback writes
// them to a directory from which they can be put back.
func (c *Client) Extract(ctx context.Context, r ExtractRequest) (*Extracted, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	exe, err := executable()
	if err != nil {
		return nil, fmt.Errorf("extract: %w", err)
	}
	dir, remove, err := database.Scratch(r.TempDir)
	if err != nil {
		return nil, err
	}
	defer remove()
	t := Target{Time: r.At, Revision: r.Revision, Latest: r.At.IsZero() && r.Revision == 0}
	return c.archive.Extract(ctx, t, r.wanted(), changelog.Fetching{
		Executable: exe, Dir: dir,
		Fetch: func(ctx context.Context, name, path string) error {
			b, _, err := c.backup(ctx, name)
			if err != nil {
				return err
			}
			_, err = c.fetchFile(ctx, b, path, r.Transfers)
			return err
		},
	})
}
