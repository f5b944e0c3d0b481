package connect

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/s3"
)

// first returns the first of the variables that is set.
func first(env func(string) string, names ...string) string {
	for _, name := range names {
		if v := env(name); v != "" {
			return v
		}
	}
	return ""
}

// withScheme makes a URL of an endpoint that is a host only, as deployments often have it.
func withScheme(endpoint string) string {
	if endpoint == "" || strings.Contains(endpoint, "://") {
		return endpoint
	}
	return "https://" + endpoint
}

// speaksS3 tells whether the store at location is asked by S3's protocol.
func speaksS3(location string) bool {
	scheme, _, _ := strings.Cut(location, ":")
	if scheme == "s3" {
		return true
	}
	for _, r := range relatives() {
		if r.scheme == scheme {
			return true
		}
	}
	return false
}

// relative is a provider whose stores speak S3 at an endpoint of its own.
type relative struct {
	scheme, provider string
	// domain is that of the provider's endpoints; what stands before it is the region, for which requests are made.
	domain string
	// example is an endpoint.
	example string
}

// relatives are the providers that kOps has URLs for. The endpoints are those of the providers' documentation.
func relatives() []relative {
	return []relative{
		{"do", "DigitalOcean Spaces", "digitaloceanspaces.com", "nyc3.digitaloceanspaces.com"},
		{"hos", "Hetzner Object Storage", "your-objectstorage.com", "fsn1.your-objectstorage.com"},
		{"linode", "Linode Object Storage", "linodeobjects.com", "us-east-1.linodeobjects.com"},
		{"scw", "Scaleway Object Storage", "scw.cloud", "s3.fr-par.scw.cloud"},
	}
}

// open needs the endpoint and both keys: neither AWS' endpoints nor AWS' roles are of any use there.
func (r relative) open(ctx context.Context, u *url.URL, env func(string) string, o options) (blob.Store, error) {
	var missing []string
	for _, name := range []string{"S3_ENDPOINT", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"} {
		if env(name) == "" {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("open store %s: not set: %s; %s needs S3_ENDPOINT (for example %s), S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY",
			u, strings.Join(missing, ", "), r.provider, r.example)
	}
	return openS3(ctx, u, func(name string) string {
		switch name {
		case "AWS_REGION", "AWS_DEFAULT_REGION": // kOps sets it for the region of the machines
			return r.region(env("S3_ENDPOINT"))
		}
		return env(name)
	}, o)
}

// region is the part of an endpoint's host that stands before the provider's domain; empty if the endpoint isn't the provider's.
func (r relative) region(endpoint string) string {
	u, err := url.Parse(withScheme(endpoint))
	if err != nil {
		return ""
	}
	front, ok := strings.CutSuffix(u.Hostname(), "."+r.domain)
	if !ok {
		return ""
	}
	return front[strings.LastIndex(front, ".")+1:]
}

func openS3(ctx context.Context, u *url.URL, env func(string) string, o options) (blob.Store, error) {
	if u.Host == "" {
		return nil, fmt.Errorf("open store %s: the bucket's name is missing, as in %s://bucket/prefix", u, u.Scheme)
	}
	cfg := s3.Config{
		Scheme:          u.Scheme,
		Bucket:          u.Host,
		Prefix:          cleanPrefix(u.Path),
		Endpoint:        first(env, "S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
		Region:          first(env, "S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"),
		AccessKeyID:     env("S3_ACCESS_KEY_ID"),
		SecretAccessKey: env("S3_SECRET_ACCESS_KEY"),
		CAFile:          first(env, "S3_CA_FILE", "AWS_CA_BUNDLE"),
		OnRequest:       o.onRequest,
		Write:           o.write,
	}
	cfg.Endpoint = withScheme(cfg.Endpoint)
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
