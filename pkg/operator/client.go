package operator

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/pkg/operator/database"
)

// DefaultTimeout bounds the few small requests of a method if Config.Timeout is 0.
const DefaultTimeout = time.Minute

// Config says which store is meant and how it is reached. Only Store is needed.
type Config struct {
	// Store is the URL, as in docs/stores.md: s3://bucket/prefix, file:///path or an absolute path, for example. Errors name it.
	Store string
	// Open opens a store by its URL; nil means the backends of pkg/blob/connect with the settings that Env names.
	Open func(ctx context.Context, url string) (blob.Store, error)
	// Env looks up a variable (os.Getenv); nil means that none is set. It is asked only if Open is nil.
	Env func(name string) string
	// Identities open what is encrypted: files with secret keys of age, or aws-kms:ARN to use no other key of the service.
	Identities []string
	// Encryption is who can read what Import writes: age:FILE with recipients, or aws-kms:ARN; empty means not encrypted.
	Encryption []string
	// KMS is the key service for what is encrypted by keys of one; nil if there is none.
	KMS envelope.KMS
	// AllowEmpty goes on though nothing of a cluster is stored at the URL; without it that is an *EmptyStoreError.
	AllowEmpty bool
	// Timeout bounds the few small requests of a method; 0 means DefaultTimeout.
	Timeout time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Program names the program and its version in manifests that Import writes.
	Program string
}

// Client is what an operator can do with one store. It is safe for concurrent use. It holds nothing that has to be closed.
// Many methods, since it is the one list of what can be done; they share the store and its settings alone.
type Client struct {
	catalog *catalog.Catalog
	archive *changelog.Archive
	config  Config
	checker database.Checker
}

// Open opens a store, and looks whether anything of a cluster is there. A Config that can't be used is a *ConfigError.
func Open(ctx context.Context, config Config) (*Client, error) {
	if config.Timeout <= 0 {
		config.Timeout = DefaultTimeout
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Open == nil {
		config.Open = config.connect
	}
	store, err := config.Open(ctx, config.Store)
	if err != nil {
		return nil, &ConfigError{FieldStore, err}
	}
	keys, err := config.keys()
	if err != nil {
		return nil, err
	}
	if !config.AllowEmpty {
		if err := config.checkStore(ctx, store); err != nil {
			return nil, err
		}
	}
	c := catalog.New(store, catalog.WithClock(config.Now), keys)
	return &Client{catalog: c, archive: &changelog.Archive{Catalog: c}, config: config, checker: database.Children{}}, nil
}

// connect opens a store of which no operation outlasts its context.
func (c *Config) connect(ctx context.Context, url string) (blob.Store, error) {
	env := c.Env
	if env == nil {
		env = func(string) string { return "" }
	}
	s, err := connect.Open(ctx, url, env)
	if err != nil {
		return nil, err
	}
	return blob.Detach(s), nil
}

// keys are what is read and written with. Keys of a key service need no identity: an object names its own.
func (c *Config) keys() (catalog.Option, error) {
	kms := envelope.Config{KMS: c.KMS}
	opener, err := envelope.NewOpener(kms, c.Identities)
	if err != nil {
		return nil, &ConfigError{FieldIdentities, err}
	}
	sealer, err := envelope.NewSealer(kms, c.Encryption)
	if err != nil {
		return nil, &ConfigError{FieldEncryption, err}
	}
	return catalog.WithKeys(sealer, opener), nil
}

// Store is the URL that the client was opened with.
func (c *Client) Store() string { return c.config.Store }

// Now is the time by the client's clock, with which ages are to be compared.
func (c *Client) Now() time.Time { return c.config.Now() }

// limit gives the store its time for a few small requests.
func (c *Client) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.config.Timeout)
}

// executable is the program that is started as a child.
func executable() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own executable: %w", err)
	}
	return exe, nil
}
