package gcs

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

// pageSize is how many entries the API puts into one page at most.
const pageSize = 1000

// listing is one request for a page. Names are those in the bucket.
type listing struct {
	prefix, delimiter, from, token string
	versions                       bool
	max                            int
}

// page is one page of a listing.
type page struct {
	Items    []object
	Prefixes []string
	Next     string `json:"nextPageToken"`
}

// page returns errors of the client, unwrapped.
func (s *Store) page(ctx context.Context, l listing) (page, error) {
	fields := "name,size,generation,timeCreated"
	if l.versions {
		fields = "name,generation,retentionExpirationTime,temporaryHold,eventBasedHold"
	}
	q := url.Values{"fields": {"nextPageToken,prefixes,items(" + fields + ")"}, "maxResults": {strconv.Itoa(l.max)}}
	for name, value := range map[string]string{"prefix": l.prefix, "delimiter": l.delimiter, "startOffset": l.from, "pageToken": l.token} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if l.versions {
		q.Set("versions", "true")
	}
	resp, err := s.client.Do(ctx, call(permList, http.MethodGet, s.objects(q)))
	if err != nil {
		return page{}, err
	}
	data, err := rest.ReadAll(resp)
	if err != nil {
		return page{}, err
	}
	var p page
	if err := json.Unmarshal(data, &p); err != nil {
		return page{}, fmt.Errorf("read a page of the listing: %w", err)
	}
	return p, nil
}

// failList wraps the error of a listing. That a listing is not found means that the bucket isn't.
func (s *Store) failList(ctx context.Context, op, prefix string, err error) error {
	if rest.Status(err) == http.StatusNotFound {
		return &blob.Error{Op: op, Key: s.name(prefix), Kind: blob.ErrInvalid,
			Err: fmt.Errorf("the bucket %q does not exist: %w", s.bucket, err)}
	}
	return s.fail(ctx, op, permList, prefix, err)
}

// pages yields those of a listing.
func (s *Store) pages(ctx context.Context, l listing) iter.Seq2[page, error] {
	return rest.Pages(func(token string) (page, string, error) {
		l.token = token
		p, err := s.page(ctx, l)
		return p, p.Next, err
	})
}

// List implements blob.Store. Names that could not have been put through this package, such as the folder marks of consoles, are left out.
func (s *Store) List(ctx context.Context, prefix string, opts blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return func(yield func(blob.Entry, error) bool) {
		if err := blob.CheckList(prefix, opts); err != nil {
			yield(blob.Entry{}, s.invalid("list", prefix, err))
			return
		}
		l := listing{prefix: s.prefix + prefix, delimiter: opts.Delimiter, max: pageSize}
		if opts.After != "" {
			l.from = s.prefix + opts.After
		}
		for p, err := range s.pages(ctx, l) {
			if err != nil {
				yield(blob.Entry{}, s.failList(ctx, "list", prefix, err))
				return
			}
			for _, e := range s.entries(p, opts.After) {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// entries merges a page's objects and common prefixes in the order of keys. The API's start is inclusive, the contract's is not.
func (s *Store) entries(p page, after string) []blob.Entry {
	entries := make([]blob.Entry, 0, len(p.Items)+len(p.Prefixes))
	for _, o := range p.Items {
		key := strings.TrimPrefix(o.Name, s.prefix)
		if key > after && blob.CheckKey(key) == nil {
			entries = append(entries, blob.Entry{Info: o.info(key)})
		}
	}
	for _, full := range p.Prefixes {
		key := strings.TrimPrefix(full, s.prefix)
		if key > after && blob.CheckPrefix(key) == nil {
			entries = append(entries, blob.Entry{Info: blob.Info{Key: key}, Prefix: true})
		}
	}
	slices.SortFunc(entries, func(a, b blob.Entry) int { return strings.Compare(a.Key, b.Key) })
	return entries
}
