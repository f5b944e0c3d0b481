// Package azure keeps objects in a container of Azure Blob Storage, by its REST interface.
//
// An object's version is its ETag, which is new with each write. Each put carries a mark of its own in the blob's metadata: if the answer
// to a put is lost, the mark tells whether the blob is ours. The package neither makes nor asks for the container itself.
package azure

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

const (
	// apiVersion is the version of the interface, for which every request asks.
	// Source: https://learn.microsoft.com/rest/api/storageservices/versioning-for-the-azure-storage-services
	apiVersion = "2021-12-02"
	// DefaultBlock is how many bytes of a blob go with one request. Smaller blobs are stored by a single one.
	DefaultBlock = 8 << 20
	// MinBlock is the smallest block that is used, for tests.
	MinBlock = 64 << 10
	// maxBlocks is the greatest number of blocks of a blob.
	maxBlocks = 50000
)

// Config says which container, and how to reach it. Account and Container are required; New checks it.
type Config struct {
	// Account is the storage account's name, Container the container's.
	Account, Container string
	// Prefix is the base of all keys in the container, without slashes at its ends. It may be empty.
	Prefix string
	// Endpoint is the account's URL; empty means https://ACCOUNT.blob.core.windows.net.
	Endpoint string
	// Credentials are how requests are authorized.
	Credentials Credentials
	// Block is the size of the blocks of a large blob in bytes; 0 means DefaultBlock. A put needs up to four times as much memory.
	Block int64
	// OnRequest, if not nil, is called before every HTTP request to the store, retries included, with the operation's name, for
	// example "PutBlob". It is called concurrently and must not block.
	OnRequest func(operation string)
}

// Store is a container as a blob.Store. Make one with New. It has no goroutines but those of a call that is under way.
type Store struct {
	account, container, prefix string
	block                      int64
	base                       string // of the container, without a slash at the end
	client                     *rest.Client
}

// New returns the store that cfg describes. It sends nothing: whether the container is there is for blob.Probe to find out.
func New(cfg Config) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("open Azure store: %w", err)
	}
	s := &Store{account: cfg.Account, container: cfg.Container, prefix: cfg.Prefix, block: cfg.Block}
	if s.block == 0 {
		s.block = DefaultBlock
	}
	if s.prefix != "" {
		s.prefix += "/"
	}
	endpoint := "https://" + cfg.Account + ".blob.core.windows.net"
	if cfg.Endpoint != "" {
		endpoint = strings.TrimSuffix(cfg.Endpoint, "/")
	}
	s.base = endpoint + "/" + cfg.Container
	s.client = &rest.Client{HTTP: rest.NewHTTP(), Explain: explain, OnRequest: cfg.OnRequest}
	if err := cfg.Credentials.use(s.client, cfg.Account); err != nil {
		return nil, fmt.Errorf("open Azure store: %w", err)
	}
	return s, nil
}

// small are the letters of account names; container names have hyphens too.
const small = "abcdefghijklmnopqrstuvwxyz0123456789"

func (cfg Config) check() error {
	if n := len(cfg.Account); n < 3 || n > 24 || strings.Trim(cfg.Account, small) != "" {
		return fmt.Errorf("%q is not the name of a storage account: that has 3 to 24 lower-case letters and digits", cfg.Account)
	}
	if n := len(cfg.Container); n < 3 || n > 63 || strings.Trim(cfg.Container, small+"-") != "" {
		return fmt.Errorf("%q is not the name of a container: that has 3 to 63 lower-case letters, digits and hyphens", cfg.Container)
	}
	if cfg.Prefix != "" {
		if err := blob.CheckKey(cfg.Prefix); err != nil {
			return fmt.Errorf("prefix: %w", err)
		}
	}
	if cfg.Block != 0 && cfg.Block < MinBlock {
		return fmt.Errorf("block size %d is below %d", cfg.Block, MinBlock)
	}
	if cfg.Endpoint != "" {
		u, err := url.Parse(cfg.Endpoint)
		if err != nil {
			return fmt.Errorf("endpoint: %w", err)
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" {
			return errors.New("the endpoint " + u.Redacted() + " is not an http or https URL without a query")
		}
	}
	return nil
}

// String is the base's URL, with the account.
func (s *Store) String() string { return strings.TrimSuffix(s.name(""), "/") }

// name is a key as the user would find it.
func (s *Store) name(key string) string {
	return "azureblob://" + s.account + "/" + s.container + "/" + s.prefix + key
}

// blobURL is the URL of one blob.
func (s *Store) blobURL(full string, query url.Values) string {
	parts := strings.Split(full, "/")
	for i, part := range parts {
		parts[i] = url.PathEscape(part)
	}
	u := s.base + "/" + strings.Join(parts, "/")
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	return u
}

// call is a request that may be sent again.
func call(op, method, url string) rest.Request {
	return rest.Request{Op: op, Method: method, URL: url, Header: http.Header{"X-Ms-Version": {apiVersion}}, Tries: 3}
}
