package standby

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
)

// TestEncrypted: without the key it says which one is needed; with it, it follows.
func TestEncrypted(t *testing.T) {
	testutil.Long(t)
	id, err := age.GenerateX25519Identity()
	testutil.Must(t, err)
	file := filepath.Join(t.TempDir(), "identity")
	testutil.Must(t, os.WriteFile(file, []byte(id.String()+"\n"), 0o600))
	sealer, err := envelope.NewSealer(envelope.Config{Cluster: "test"}, []string{"age:" + id.Recipient().String()})
	testutil.Must(t, err)
	opener, err := envelope.NewOpener(envelope.Config{Cluster: "test"}, []string{file})
	testutil.Must(t, err)
	p, dir := newPrimary(t), t.TempDir()
	p.catalog = catalog.New(p.store, catalog.WithKeys(sealer, opener))
	p.record()
	p.write(0)
	p.archived()
	p.backup()
	c := p.follow(dir, nil)
	testutil.Eventually(t, "it says that a key is needed", func() bool { return strings.Contains(c.Report().Error, "key") })
	c.stop()
	c = p.follow(dir, func(cfg *Config) { cfg.Catalog = catalog.New(blob.ReadOnly(p.store), catalog.WithKeys(nil, opener)) })
	p.write(1)
	p.archived()
	c.reaches(p.last)
	c.stop()
	p.same(dir)
}
