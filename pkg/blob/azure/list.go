package azure

import (
	"context"
	"encoding/xml"
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

// pageSize is how many entries the service puts into one page at most.
const pageSize = 5000

// listing is one request for a page. Names are those in the container.
type listing struct {
	prefix, delimiter, marker string
	versions                  bool
}

// found is one blob of a page, or one version of it.
type found struct {
	Name      string
	VersionID string `xml:"VersionId"`
	Current   bool   `xml:"IsCurrentVersion"`
	Props     struct {
		Modified string `xml:"Last-Modified"`
		ETag     string `xml:"Etag"`
		Size     int64  `xml:"Content-Length"`
		// Resource is "directory" for those that a hierarchical account lists.
		Resource string `xml:"ResourceType"`
	} `xml:"Properties"`
}

// page is one page of a listing.
type page struct {
	Blobs struct {
		Blob   []found
		Prefix []struct{ Name string } `xml:"BlobPrefix"`
	}
	Next string `xml:"NextMarker"`
}

// page returns errors of the client, unwrapped.
func (s *Store) page(ctx context.Context, l listing) (page, error) {
	q := url.Values{"restype": {"container"}, "comp": {"list"}, "maxresults": {strconv.Itoa(pageSize)}}
	for name, value := range map[string]string{"prefix": l.prefix, "delimiter": l.delimiter, "marker": l.marker} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if l.versions {
		q.Set("include", "versions")
	}
	resp, err := s.client.Do(ctx, call("ListBlobs", http.MethodGet, s.base+"?"+q.Encode()))
	if err != nil {
		return page{}, err
	}
	data, err := rest.ReadAll(resp)
	if err != nil {
		return page{}, err
	}
	var p page
	if err := xml.Unmarshal(data, &p); err != nil {
		return page{}, fmt.Errorf("read a page of the listing: %w", err)
	}
	p.Blobs.Blob = slices.DeleteFunc(p.Blobs.Blob, func(b found) bool { return b.Props.Resource == "directory" })
	return p, nil
}

// failList wraps the error of a listing. That a listing is not found means that the container isn't.
func (s *Store) failList(ctx context.Context, op, prefix string, err error) error {
	if rest.Status(err) == http.StatusNotFound {
		return &blob.Error{Op: op, Key: s.name(prefix), Kind: blob.ErrInvalid,
			Err: fmt.Errorf("the container %q does not exist in the account %q: %w", s.container, s.account, err)}
	}
	return s.fail(ctx, op, permRead, prefix, err)
}

// pages yields those of a listing.
func (s *Store) pages(ctx context.Context, l listing) iter.Seq2[page, error] {
	return rest.Pages(func(token string) (page, string, error) {
		l.marker = token
		p, err := s.page(ctx, l)
		return p, p.Next, err
	})
}

// List implements blob.Store. A listing can't begin at a key, so what comes before After is listed too, five thousand entries with a
// request. Names that could not have been put through this package are left out, and so are a hierarchical account's directories.
func (s *Store) List(ctx context.Context, prefix string, opts blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return func(yield func(blob.Entry, error) bool) {
		if err := blob.CheckList(prefix, opts); err != nil {
			yield(blob.Entry{}, s.invalid("list", prefix, err))
			return
		}
		l := listing{prefix: s.prefix + prefix, delimiter: opts.Delimiter}
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

// entries merges a page's blobs and common prefixes in the order of keys.
func (s *Store) entries(p page, after string) []blob.Entry {
	entries := make([]blob.Entry, 0, len(p.Blobs.Blob)+len(p.Blobs.Prefix))
	for _, b := range p.Blobs.Blob {
		key := strings.TrimPrefix(b.Name, s.prefix)
		if key > after && blob.CheckKey(key) == nil {
			info := blob.Info{Key: key, Size: b.Props.Size, Version: strings.Trim(b.Props.ETag, `"`)}
			if t, err := http.ParseTime(b.Props.Modified); err == nil {
				info.Modified = t
			}
			entries = append(entries, blob.Entry{Info: info})
		}
	}
	for _, b := range p.Blobs.Prefix {
		key := strings.TrimPrefix(b.Name, s.prefix)
		if key > after && blob.CheckPrefix(key) == nil {
			entries = append(entries, blob.Entry{Info: blob.Info{Key: key}, Prefix: true})
		}
	}
	slices.SortFunc(entries, func(a, b blob.Entry) int { return strings.Compare(a.Key, b.Key) })
	return entries
}
