package azure

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

const (
	// deletes is how many blobs are deleted at once. The service's batches need a signature for each part, and are not for all accounts.
	deletes = 16
	// maxPending bounds what is remembered before it is deleted.
	maxPending = 5000
	// maxAsked is how many of the blobs that are protected are asked until when.
	maxAsked = 3
)

// deleteBlob deletes a blob with its snapshots, or one old version of it. It returns errors of the client, unwrapped.
func (s *Store) deleteBlob(ctx context.Context, full, version string) error {
	q := url.Values{}
	if version != "" {
		q.Set("versionid", version)
	}
	req := call("DeleteBlob", http.MethodDelete, s.blobURL(full, q))
	if version == "" {
		req.Header.Set("X-Ms-Delete-Snapshots", "include")
	}
	resp, err := s.client.Do(ctx, req)
	if err != nil {
		return err
	}
	rest.Drop(resp)
	return nil
}

// Purge implements blob.Store. It lists once, with all versions, and deletes several blobs at once. A container with soft delete
// keeps what was deleted for as long as it is set to, where nobody sees it.
func (s *Store) Purge(ctx context.Context, prefix string, match func(key string) bool) (int, error) {
	if err := blob.CheckPrefix(prefix); err != nil {
		return 0, s.invalid("purge", prefix, err)
	}
	p := &purger{s: s, ctx: ctx, prefix: prefix, match: match, gone: map[string]bool{}, failed: map[string]bool{}}
	if err := p.run(); err != nil {
		p.errs = append(p.errs, err)
	}
	n := 0
	for key := range p.gone {
		if !p.failed[key] {
			n++
		}
	}
	return n, errors.Join(append(p.errs, p.failures()...)...)
}

// target is one blob with its old versions.
type target struct {
	name     string
	current  bool // There is one that readers see.
	versions []string
}

// purger is one run of Purge.
type purger struct {
	s       *Store
	ctx     context.Context
	prefix  string
	match   func(string) bool
	pending []target
	lastKey string
	matches bool

	mu           sync.Mutex
	gone, failed map[string]bool
	groups       []*failureGroup
	errs         []error
}

// failureGroup has the failures for one reason.
type failureGroup struct {
	first  *rest.StatusError
	action string
	keys   []string
}

func (p *purger) run() error {
	l := listing{prefix: p.s.prefix + p.prefix, versions: true}
	err := p.purge(l)
	if status := rest.Status(err); p.lastKey == "" && (status == http.StatusBadRequest || status == http.StatusConflict) {
		l.versions = false // The account can't keep any.
		err = p.purge(l)
	}
	return err
}

func (p *purger) purge(l listing) error {
	for page, err := range p.s.pages(p.ctx, l) {
		if err != nil {
			return p.s.failList(p.ctx, "purge", p.prefix, err)
		}
		for _, b := range page.Blobs.Blob {
			p.add(b, l.versions)
		}
		if len(p.pending) >= maxPending {
			if err := p.flush(false); err != nil {
				return err
			}
		}
	}
	return p.flush(true)
}

// add remembers a blob if its key matches; match is asked once for a key, whose versions come together, the oldest first.
func (p *purger) add(b found, versions bool) {
	key := strings.TrimPrefix(b.Name, p.s.prefix)
	if key == "" {
		return
	}
	if key != p.lastKey {
		p.lastKey, p.matches = key, p.match(key)
		if p.matches {
			p.pending = append(p.pending, target{name: b.Name})
		}
	}
	if !p.matches {
		return
	}
	t := &p.pending[len(p.pending)-1]
	t.current = t.current || b.Current || b.VersionID == "" || !versions
	if b.VersionID != "" {
		t.versions = append(t.versions, b.VersionID)
	}
}

// flush deletes what is pending. It goes on after blobs that can't be deleted, but not if the store can't be asked any more. More
// versions may follow of the last blob, unless it is the end.
func (p *purger) flush(end bool) error {
	ready := p.pending
	p.pending = nil
	if !end && len(ready) > 0 && ready[len(ready)-1].name == p.s.prefix+p.lastKey {
		p.pending = []target{ready[len(ready)-1]}
		ready = ready[:len(ready)-1]
	}
	g, ctx := errgroup.WithContext(p.ctx)
	g.SetLimit(deletes)
	for _, t := range ready {
		g.Go(func() error { return p.delete(ctx, t) })
	}
	return g.Wait()
}

// delete deletes the blob that readers see first: an account that keeps versions makes an old one of it. Only a failure that is not about
// this blob is returned.
func (p *purger) delete(ctx context.Context, t target) error {
	if t.current {
		if err := p.deleted(t.name, permDelete, p.s.deleteBlob(ctx, t.name, "")); err != nil {
			return err
		}
	}
	for _, version := range t.versions {
		if p.hasFailed(t.name) {
			return nil
		}
		if err := p.deleted(t.name, permVersion, p.s.deleteBlob(ctx, t.name, version)); err != nil {
			return err
		}
	}
	return nil
}

func (p *purger) hasFailed(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed[name]
}

// deleted notes what a delete has come to.
func (p *purger) deleted(name, action string, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var se *rest.StatusError
	switch {
	case err == nil || rest.Status(err) == http.StatusNotFound && rest.Code(err) != codeNoContainer:
		p.gone[name] = true
		return nil
	case !errors.As(err, &se) || se.Code == codeNoContainer || se.Status == http.StatusUnauthorized:
		return p.s.fail(p.ctx, "purge", action, p.prefix, err)
	}
	p.failed[name] = true
	key := strings.TrimPrefix(name, p.s.prefix)
	i := slices.IndexFunc(p.groups, func(g *failureGroup) bool {
		return g.first.Status == se.Status && g.first.Code == se.Code && g.action == action
	})
	if i < 0 {
		p.groups = append(p.groups, &failureGroup{first: se, action: action})
		i = len(p.groups) - 1
	}
	p.groups[i].keys = append(p.groups[i].keys, key)
	return nil
}

// failures returns one error for each reason.
func (p *purger) failures() []error {
	var errs []error
	for _, g := range p.groups {
		slices.Sort(g.keys)
		e := &blob.Error{Op: "purge", Key: p.s.name(g.keys[0]), Keys: g.keys, Err: g.first}
		if g.first.Code == codeImmutable {
			e.Kind, e.Keys, e.Err = blob.ErrLocked, nil, p.locked(g.keys)
			errs = append(errs, e)
			continue
		}
		p.s.classify(e, g.action)
		if n := len(g.keys); n > 1 {
			e.Err = fmt.Errorf("%w (and %d more)", e.Err, n-1)
		}
		errs = append(errs, e)
	}
	return errs
}

// locked asks a few of the blobs until when they are protected. A policy of the container doesn't show there.
func (p *purger) locked(keys []string) *blob.LockedError {
	l := &blob.LockedError{Keys: keys}
	for _, key := range keys[:min(len(keys), maxAsked)] {
		_, header, err := p.s.stat(p.ctx, key)
		if err != nil {
			continue
		}
		l.LegalHold = l.LegalHold || header.Get("X-Ms-Legal-Hold") == "true"
		until, err := time.Parse(http.TimeFormat, header.Get("X-Ms-Immutability-Policy-Until-Date"))
		if err == nil && (l.Until.IsZero() || until.Before(l.Until)) {
			l.Until = until
		}
	}
	return l
}
