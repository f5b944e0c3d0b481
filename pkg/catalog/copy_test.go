package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestDigestReader: what ends must be what the digest says; what breaks off is no damage, whatever the error wraps.
func TestDigestReader(t *testing.T) {
	const content = "what was stored"
	sum := sha256.Sum256([]byte(content))
	want := Digest{Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
	reset := fmt.Errorf("read tcp: connection reset: %w", io.EOF)
	for name, x := range map[string]struct {
		body    io.Reader
		want    Digest
		corrupt bool
		err     error
	}{
		"as it is":             {body: strings.NewReader(content), want: want},
		"byte by byte":         {body: iotest.OneByteReader(strings.NewReader(content)), want: want},
		"end with the bytes":   {body: iotest.DataErrReader(strings.NewReader(content)), want: want},
		"beginning of the sum": {body: strings.NewReader(content), want: Digest{want.Size, want.SHA256[:16]}},
		"no sum":               {body: strings.NewReader(content), want: Digest{Size: want.Size}, corrupt: true},
		"changed":              {body: strings.NewReader("What was stored"), want: want, corrupt: true},
		"cut short":            {body: strings.NewReader(content[:5]), want: want, corrupt: true},
		"too long":             {body: strings.NewReader(content + "."), want: want, corrupt: true},
		"broken off at once":   {body: iotest.ErrReader(reset), want: want, err: reset},
		"broken off":           {body: io.MultiReader(strings.NewReader(content[:5]), iotest.ErrReader(reset)), want: want, err: reset},
	} {
		_, err := io.Copy(io.Discard, &digestReader{r: x.body, key: "k", want: x.want, sum: sha256.New()})
		sound := x.err == nil && !x.corrupt
		if errors.Is(err, cluster.ErrCorrupt) != x.corrupt || x.err != nil && !errors.Is(err, x.err) || sound && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
