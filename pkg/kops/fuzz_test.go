package kops

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// yamlCost is what the reader of YAML takes, and the JSON that it is turned into.
var yamlCost = testutil.Cost{Fixed: 4 << 20, PerByte: 5000}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"three.yaml", "one-v1alpha3.yaml"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		must(f, err)
		f.Add(data)
	}
	f.Add([]byte("kind: Cluster\nspec:\n  etcdClusters:\n  - name: \"" + strings.Repeat(`\x1b`, 3000) + "\"\n"))
	f.Add([]byte("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n" +
		"e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		testutil.Untrusted(t, len(data), yamlCost, func() error {
			_, err := Parse(data)
			if err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("not ErrInvalid: %v", err)
			}
			return err
		})
	})
}

func FuzzKeyset(f *testing.F) {
	f.Add([]byte("apiVersion: kops.k8s.io/v1alpha2\nkind: Keyset\nspec:\n  primaryID: \"1\"\n  keys:\n  - id: \"1\"\n    publicMaterial: QUJD\n    privateMaterial: QUJD\n"))
	f.Add([]byte("kind: Keyset\nspec:\n  primaryID: \"" + strings.Repeat(`\x1b`, 3000) + "\"\n  keys:\n  - id: a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		testutil.Untrusted(t, len(data), yamlCost, func() error {
			k, _, err := parseKeyset(data)
			if err != nil {
				return err
			}
			out, err := k.encode()
			must(t, err)
			_, _, err = parseKeyset(out)
			return err
		})
	})
}
