package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/pkg/envelope/awskms"
)

// keysTimeout bounds the probe of the keys.
const keysTimeout = time.Minute

// openKeys reads the keys that backups are sealed and opened with. The key service is asked only when the first of its keys is needed.
func (d *daemon) openKeys() (catalog.Option, error) {
	c := envelope.Config{Cluster: d.o.clusterName, KMS: awskms.New(awskms.Config{Endpoint: d.o.env["KMS_ENDPOINT"]})}
	sealer, err := envelope.NewSealer(c, d.o.encryption)
	if err != nil {
		return nil, fmt.Errorf("--backup-encryption: %w", err)
	}
	opener, err := envelope.NewOpener(c, d.o.identities)
	if err != nil {
		return nil, fmt.Errorf("--backup-identity: %w", err)
	}
	return catalog.WithKeys(sealer, opener), nil
}

// probeKeys seals and opens a few bytes, and says what would fail later, when it is needed most. It
// stops nothing: a permission may be granted, and a key enabled, at any time.
func (d *daemon) probeKeys(ctx context.Context) {
	sealer := d.catalog.Sealer()
	if sealer == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	_, ids := sealer.Info()
	sealed, err := envelope.Probe(ctx, sealer, d.catalog.Opener())
	switch {
	case err == nil:
		klog.V(2).Infof("backups are encrypted for %s, and can be opened here", strings.Join(ids, ", "))
	case !sealed:
		klog.Errorf("backups can't be encrypted, so none is taken until this is repaired: %v", err)
	case errors.Is(err, envelope.ErrNoKey):
		klog.Warningf("backups are encrypted for %s, and this manager has no key to open them: it can't restore until it gets one by --backup-identity", strings.Join(ids, ", "))
	default:
		klog.Errorf("backups are encrypted, but can't be opened here, so no restore is possible until this is repaired: %v", err)
	}
}
