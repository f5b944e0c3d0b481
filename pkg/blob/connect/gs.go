package connect

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/gcs"
)

func openGCS(_ context.Context, u *url.URL, env func(string) string, o options) (blob.Store, error) {
	if u.Host == "" {
		return nil, fmt.Errorf("open store %s: the bucket's name is missing, as in gs://bucket/prefix", u)
	}
	cfg := gcs.Config{
		Bucket:          u.Host,
		Prefix:          cleanPrefix(u.Path),
		Emulator:        env("STORAGE_EMULATOR_HOST"),
		CredentialsFile: env("GOOGLE_APPLICATION_CREDENTIALS"),
		MetadataHost:    env("GCE_METADATA_HOST"),
		OnRequest:       o.onRequest,
	}
	if cfg.CredentialsFile == "" {
		cfg.CredentialsFile = gcloudFile(env)
	}
	s, err := gcs.New(cfg)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// gcloudFile is where "gcloud auth application-default login" leaves credentials; empty if it has not.
func gcloudFile(env func(string) string) string {
	dir := env("CLOUDSDK_CONFIG")
	if dir == "" {
		home := env("HOME")
		if home == "" {
			return ""
		}
		dir = filepath.Join(home, ".config", "gcloud")
	}
	file := filepath.Join(dir, "application_default_credentials.json")
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}
