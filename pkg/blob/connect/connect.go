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

// OnRequest has f called before every HTTP request of an S3 store with the operation's name. It is called concurrently.
func OnRequest(f func(operation string)) Option { return func(o *options) { o.onRequest = f } }

// Open returns the store at location: "s3://bucket/prefix", "file:///path" or an absolute path. Nothing is sent or made yet.
//
// env looks a variable up (os.Getenv). For S3: S3_ENDPOINT, or AWS_ENDPOINT_URL_S3 or
// AWS_ENDPOINT_URL, names a server other than AWS, which is then addressed path-style; S3_REGION,
// AWS_REGION or AWS_DEFAULT_REGION the region; S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY static
// keys; S3_CA_FILE or AWS_CA_BUNDLE a file with a private CA; KOPS_STATE_S3_ACL a canned ACL for
// what is written. AWS is addressed by its dual-stack endpoints unless AWS_USE_DUALSTACK_ENDPOINT
// is false. Without static keys the AWS SDK looks where it always does, in the process's own
// environment among others.
func Open(ctx context.Context, location string, env func(string) string, opts ...Option) (blob.Store, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	if location == "" {
		return nil, errors.New("open store: no URL is given; it is s3://bucket/prefix or file:///path")
	}
	if !strings.HasPrefix(location, "s3:") && (o.write.SSE != "" || o.write.KMSKeyID != "" ||
		o.write.StorageClass != "" || len(o.write.Tags) > 0) {
		return nil, fmt.Errorf("open store %s: server-side encryption, storage class and tags need an S3 store", location)
	}
	if filepath.IsAbs(location) {
		return openFile(location)
	}
	u, err := url.Parse(location)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("open store %s: the URL can't have a user, a query or a fragment", u.Redacted())
	}
	switch u.Scheme {
	case "s3":
		return openS3(ctx, u, env, o)
	case "file":
		if u.Host != "" && u.Host != "localhost" {
			return nil, fmt.Errorf("open store %s: %q stands where a host would; an absolute path is written with three slashes, file:///%s%s", location, u.Host, u.Host, u.Path)
		}
		if u.Opaque != "" || u.Path == "" {
			return nil, fmt.Errorf("open store %s: the path must be absolute, as in file:///path", location)
		}
		return openFile(u.Path)
	case "":
		return nil, fmt.Errorf("open store %s: a path must be absolute", location)
	}
	return nil, fmt.Errorf("open store %s: scheme %q is unknown; it is s3://bucket/prefix, file:///path or an absolute path",
		location, u.Scheme)
}

func openFile(path string) (blob.Store, error) {
	s, err := file.New(path)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func openS3(ctx context.Context, u *url.URL, env func(string) string, o options) (blob.Store, error) {
	if u.Host == "" {
		return nil, fmt.Errorf("open store %s: the bucket's name is missing, as in s3://bucket/prefix", u)
	}
	first := func(names ...string) string {
		for _, name := range names {
			if v := env(name); v != "" {
				return v
			}
		}
		return ""
	}
	cfg := s3.Config{
		Bucket:          u.Host,
		Prefix:          cleanPrefix(u.Path),
		Endpoint:        first("S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
		Region:          first("S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"),
		AccessKeyID:     env("S3_ACCESS_KEY_ID"),
		SecretAccessKey: env("S3_SECRET_ACCESS_KEY"),
		CAFile:          first("S3_CA_FILE", "AWS_CA_BUNDLE"),
		OnRequest:       o.onRequest,
		Write:           o.write,
	}
	if cfg.Endpoint != "" && !strings.Contains(cfg.Endpoint, "://") {
		cfg.Endpoint = "https://" + cfg.Endpoint
	}
	cfg.PathStyle = cfg.Endpoint != ""
	cfg.Write.ACL = strings.TrimSpace(env("KOPS_STATE_S3_ACL"))
	switch v := env("AWS_USE_DUALSTACK_ENDPOINT"); strings.ToLower(v) {
	case "", "true":
	case "false":
		cfg.SingleStack = true
	default:
		return nil, fmt.Errorf("open store %s: AWS_USE_DUALSTACK_ENDPOINT is %q; it can only be true, which is the default, or false", u, v)
	}
	switch payer := env("S3_REQUEST_PAYER"); payer {
	case "", "requester":
		cfg.RequesterPays = payer != ""
	default:
		return nil, fmt.Errorf("open store %s: S3_REQUEST_PAYER is %q; it can only be \"requester\"", u, payer)
	}
	if (cfg.AccessKeyID == "") != (cfg.SecretAccessKey == "") {
		return nil, fmt.Errorf("open store %s: of S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY only one is set", u)
	}
	s, err := s3.New(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// cleanPrefix drops slashes that say nothing, as other readers of these URLs do.
func cleanPrefix(path string) string {
	return strings.Join(strings.FieldsFunc(path, func(r rune) bool { return r == '/' }), "/")
}
