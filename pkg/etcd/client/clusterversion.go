package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// ClusterVersion is the minor version that all members keep to, for example "3.5.0": no older etcd starts on the data. It is only told over
// plain HTTP, on the client URLs. It is empty while the cluster hasn't settled on one yet.
func (c *Client) ClusterVersion(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.endpoints[0]+"/version", nil)
	if err != nil {
		return "", fmt.Errorf("read cluster version: %w", err)
	}
	tr := &http.Transport{TLSClientConfig: c.tls.Clone(), DisableKeepAlives: true, TLSHandshakeTimeout: 2 * time.Second}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", fmt.Errorf("read cluster version: %w", err)
	}
	defer resp.Body.Close()
	var v struct {
		Cluster string `json:"etcdcluster"`
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("read cluster version at %s: %s", c.endpoints[0], resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4096)).Decode(&v); err != nil {
		return "", fmt.Errorf("read cluster version at %s: %w", c.endpoints[0], err)
	}
	if parsed, err := etcd.ParseVersion(v.Cluster); err != nil || parsed.Major == 0 {
		return "", nil // "not_decided"
	}
	return v.Cluster, nil
}
