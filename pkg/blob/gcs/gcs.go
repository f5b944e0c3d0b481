// Package gcs keeps objects in a bucket of Google Cloud Storage, by its JSON API.
//
// An object's version is its generation, which never comes back. Every condition is one of generations, so Google's own
// locking decides it. Each put carries a mark of its own in the object's metadata: if the answer to a put is lost, the mark tells
// whether the object is ours. The package asks for no permission on the bucket itself, only on its objects.
package gcs

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

const (
	// defaultEndpoint is where Google's API is.
	defaultEndpoint = "https://storage.googleapis.com"
	// DefaultChunk is how many bytes of an object go with one request. Smaller objects are stored by a single one.
	DefaultChunk = 8 << 20
	// MinChunk is the smallest chunk, of which every other is a multiple: the API takes no other lengths but for the last.
	MinChunk = 256 << 10
)

// Config says which bucket, and how to reach it. Bucket is required; New checks it.
type Config struct {
	// Bucket is the bucket's name.
	Bucket string
	// Prefix is the base of all keys in the bucket, without slashes at its ends. It may be empty.
	Prefix string
	// Emulator is the address of a server that stands for Google's, with or without http://. It gets no credentials.
	Emulator string
	// Endpoint is the URL of the API; empty means Google's.
	Endpoint string
	// CredentialsFile names a file with credentials: of a service account, a user, or a federation of identities. If it is empty
	// they come from the machine's metadata.
	CredentialsFile string
	// MetadataHost is the host of the machine's metadata; empty means Google's.
	MetadataHost string
	// Chunk is the size of the chunks of a large object in bytes; 0 means DefaultChunk. A put needs up to three times as much memory.
	Chunk int64
	// OnRequest, if not nil, is called before every HTTP request to the store, retries included, with the operation's name, for
	// example "storage.objects.get". It is called concurrently and must not block.
	OnRequest func(operation string)
}

// Store is a bucket as a blob.Store. Make one with New. It has no goroutines but while it waits for a token.
type Store struct {
	bucket, prefix string
	chunk          int64
	base           string // of the API, without a slash at the end
	client         *rest.Client
}

// New returns the store that cfg describes. It reads the file with credentials, but sends nothing: whether the bucket is there is for
// blob.Probe to find out.
func New(cfg Config) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("open GCS store: %w", err)
	}
	s := &Store{bucket: cfg.Bucket, prefix: cfg.Prefix, chunk: cfg.Chunk, base: defaultEndpoint}
	if s.chunk == 0 {
		s.chunk = DefaultChunk
	}
	if s.prefix != "" {
		s.prefix += "/"
	}
	if cfg.Endpoint != "" {
		s.base = strings.TrimSuffix(cfg.Endpoint, "/")
	}
	s.client = &rest.Client{HTTP: rest.NewHTTP(), Explain: explain, OnRequest: cfg.OnRequest}
	if cfg.Emulator != "" {
		s.base = strings.TrimSuffix(cfg.Emulator, "/")
		if !strings.Contains(s.base, "://") {
			s.base = "http://" + s.base
		}
		return s, nil
	}
	tokens, err := cfg.tokens()
	if err != nil {
		return nil, fmt.Errorf("open GCS store: %w", err)
	}
	s.client.Authorize, s.client.Refused = bearer(tokens), tokens.Forget
	return s, nil
}

func (cfg Config) check() error {
	if cfg.Bucket == "" {
		return errors.New("the bucket's name is empty")
	}
	if strings.ContainsAny(cfg.Bucket, "/ \t\n?#%") {
		return fmt.Errorf("%q is not a bucket's name", cfg.Bucket)
	}
	if cfg.Prefix != "" {
		if err := blob.CheckKey(cfg.Prefix); err != nil {
			return fmt.Errorf("prefix: %w", err)
		}
	}
	if cfg.Chunk%MinChunk != 0 || cfg.Chunk < 0 {
		return fmt.Errorf("chunk size %d is not a multiple of %d", cfg.Chunk, MinChunk)
	}
	for _, endpoint := range []string{cfg.Endpoint, cfg.Emulator} {
		if endpoint == "" {
			continue
		}
		if !strings.Contains(endpoint, "://") {
			endpoint = "http://" + endpoint
		}
		u, err := url.Parse(endpoint)
		if err != nil {
			return fmt.Errorf("endpoint: %w", err)
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("endpoint %q is not an http or https URL", endpoint)
		}
	}
	if cfg.CredentialsFile != "" {
		if _, err := os.Stat(cfg.CredentialsFile); err != nil {
			return fmt.Errorf("credentials: %w", err)
		}
	}
	return nil
}

// String is the base's URL.
func (s *Store) String() string {
	return strings.TrimSuffix("gs://"+path.Join(s.bucket, s.prefix), "/")
}

// name is a key as the user would find it.
func (s *Store) name(key string) string { return "gs://" + s.bucket + "/" + s.prefix + key }

// objects is the URL of the bucket's objects, with a query; upload is that of new ones.
func (s *Store) objects(query url.Values) string {
	return s.base + "/storage/v1/b/" + url.PathEscape(s.bucket) + "/o?" + query.Encode()
}

func (s *Store) upload(query url.Values) string {
	return s.base + "/upload/storage/v1/b/" + url.PathEscape(s.bucket) + "/o?" + query.Encode()
}

// path is the path of one object below the endpoint.
func (s *Store) path(full string) string {
	return "/storage/v1/b/" + url.PathEscape(s.bucket) + "/o/" + url.PathEscape(full)
}

func (s *Store) object(key string, query url.Values) string {
	return s.base + s.path(s.prefix+key) + "?" + query.Encode()
}

// call is a request that may be sent again.
func call(op, method, url string) rest.Request {
	return rest.Request{Op: op, Method: method, URL: url, Header: http.Header{}, Tries: 3}
}
