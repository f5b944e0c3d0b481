// Package connect opens the object store that a URL names, with the settings that deployments have in their environment.
//
// It is the only place that knows all backends and the names of the variables. It decides nothing
// else: retries and limits are put around the store by the caller.
package connect

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
	"github.com/etcd-manager/etcd-manager/pkg/blob/s3"
)

// Option changes how a store is opened.
type Option func(*options)

type options struct {
	onRequest func(string)
	write     s3.WriteOptions
}

// Writing is what an S3 store is asked for with every object; see s3.WriteOptions.
type Writing = s3.WriteOptions

// WriteAs has an S3 store asked for encryption, storage class and tags. It is an error with any other store.
func WriteAs(w Writing) Option { return func(o *options) { o.write = w } }

// OnRequest has f called before every HTTP request of a store, with the operation's name as the provider has it. It is called concurrently.
func OnRequest(f func(operation string)) Option { return func(o *options) { o.onRequest = f } }

// scheme is one kind of store.
type scheme struct {
	// name is the URL's scheme, and example a URL.
	name, example string
	open          func(ctx context.Context, u *url.URL, env func(string) string, o options) (blob.Store, error)
}

// schemes are all kinds of stores, in the order in which messages name them.
func schemes() []scheme {
	list := []scheme{{"s3", "s3://bucket/prefix", openS3}}
	for _, r := range relatives() {
		list = append(list, scheme{r.scheme, r.scheme + "://bucket/prefix", r.open})
	}
	list = append(list, scheme{"gs", "gs://bucket/prefix", openGCS},
		scheme{"azureblob", "azureblob://account/container/prefix", openAzure})
	return append(list, scheme{"file", "file:///path", openFileURL})
}

// Schemes are the schemes of the URLs that Open knows.
func Schemes() []string {
	var names []string
	for _, s := range schemes() {
		names = append(names, s.name)
	}
	return names
}

// forms lists how the location of a store can look.
func forms() string {
	var examples []string
	for _, s := range schemes() {
		examples = append(examples, s.example)
	}
	return strings.Join(examples, ", ") + " or an absolute path"
}

// Open returns the store at location: a URL with one of Schemes, or an absolute path. Nothing is sent or made yet.
//
// env looks a variable up (os.Getenv). docs/stores.md lists the variables of each kind of store. Where they give no
// credentials the provider's usual chain is used, which looks in the process's own environment among others.
func Open(ctx context.Context, location string, env func(string) string, opts ...Option) (blob.Store, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	if location == "" {
		return nil, fmt.Errorf("open store: no URL is given; there are %s", forms())
	}
	if !speaksS3(location) && (o.write.SSE != "" || o.write.KMSKeyID != "" ||
		o.write.StorageClass != "" || len(o.write.Tags) > 0) {
		return nil, fmt.Errorf("open store %s: server-side encryption, storage class and tags need an S3 store", withoutUser(location))
	}
	if filepath.IsAbs(location) {
		return openFile(location)
	}
	u, err := url.Parse(location)
	if err != nil {
		var bad *url.Error
		if errors.As(err, &bad) {
			err = bad.Err
		}
		if strings.Contains(location, "@") { // it can repeat a part of what may be a password
			err = errors.New("it can't be read, and has no place for a user")
		}
		return nil, fmt.Errorf("open store %s: %w", withoutUser(location), err)
	}
	if u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("open store %s: the URL can't have a user, a query or a fragment", u.Redacted())
	}
	if u.Scheme == "" {
		return nil, fmt.Errorf("open store %s: a path must be absolute", location)
	}
	for _, s := range schemes() {
		if s.name == u.Scheme {
			return s.open(ctx, u, env, o)
		}
	}
	return nil, fmt.Errorf("open store %s: scheme %q is unknown; there are %s", withoutUser(location), u.Scheme, forms())
}

func openFileURL(_ context.Context, u *url.URL, _ func(string) string, _ options) (blob.Store, error) {
	if u.Host != "" && u.Host != "localhost" {
		return nil, fmt.Errorf("open store %s: %q stands where a host would; an absolute path is written with three slashes, file:///%s%s",
			u, u.Host, u.Host, u.Path)
	}
	if u.Opaque != "" || u.Path == "" {
		return nil, fmt.Errorf("open store %s: the path must be absolute, as in file:///path", u)
	}
	return openFile(u.Path)
}

// withoutUser is a URL without what may be a password, also if it isn't a URL.
func withoutUser(location string) string {
	scheme, rest, ok := strings.Cut(location, "//")
	if at := strings.LastIndex(rest, "@"); ok && at >= 0 {
		return scheme + "//…" + rest[at:]
	}
	if at := strings.LastIndex(location, "@"); at >= 0 {
		return "…" + location[at:]
	}
	return location
}

func openFile(path string) (blob.Store, error) {
	s, err := file.New(path)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// cleanPrefix drops slashes that say nothing, as other readers of these URLs do.
func cleanPrefix(path string) string {
	return strings.Join(strings.FieldsFunc(path, func(r rune) bool { return r == '/' }), "/")
}
