package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/webhook"
)

// maxWebhookFile bounds a file with a URL or a secret, in bytes.
const maxWebhookFile = 4096

// parseWebhooks reads the files that the flags name and checks the URLs. No error has a URL or a secret in it.
func (o *options) parseWebhooks() error {
	if len(o.webhooks) == 0 {
		if o.webhookSecretFile != "" {
			return fmt.Errorf("--webhook-secret-file=%s signs nothing without --webhook-url", o.webhookSecretFile)
		}
		return nil
	}
	c := webhook.Config{ClusterName: o.clusterName, Store: o.backupStore}
	for _, u := range o.webhooks {
		if path, ok := strings.CutPrefix(u, "@"); ok {
			data, err := readWebhookFile(path)
			if err != nil {
				return fmt.Errorf("--webhook-url: %w", err)
			}
			u = string(data)
		}
		c.URLs = append(c.URLs, u)
	}
	if o.webhookSecretFile != "" {
		var err error
		if c.Secret, err = readWebhookFile(o.webhookSecretFile); err != nil {
			return fmt.Errorf("--webhook-secret-file: %w", err)
		}
		if n := len(c.Secret); n < webhook.MinSecret {
			return fmt.Errorf("--webhook-secret-file=%s: the secret has %d bytes; use at least %d", o.webhookSecretFile, n, webhook.MinSecret)
		}
	}
	s, err := webhook.New(c)
	if err != nil {
		return fmt.Errorf("--webhook-url: %w", err)
	}
	o.webhook = s
	return nil
}

// readWebhookFile reads one line.
func readWebhookFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxWebhookFile+1))
	if err != nil {
		return nil, err
	}
	if data = bytes.TrimSpace(data); len(data) == 0 || len(data) > maxWebhookFile || bytes.ContainsAny(data, "\r\n") {
		return nil, fmt.Errorf("%s must have one line, of at most %d bytes", path, maxWebhookFile)
	}
	return data, nil
}
