package etcd

import (
	"slices"
	"testing"

	apiversion "go.etcd.io/etcd/api/v3/version"
)

func TestCompiledVersion(t *testing.T) {
	if CompiledVersion != apiversion.Version {
		t.Errorf("CompiledVersion is %s, the module says %s", CompiledVersion, apiversion.Version)
	}
}

func TestVersionOrder(t *testing.T) {
	in := []string{"3.10.0", "3.5.21", "garbage", "3.5.9", "3.6.0-rc.1", "3.6.0"}
	slices.SortFunc(in, Compare)
	if want := []string{"garbage", "3.5.9", "3.5.21", "3.6.0-rc.1", "3.6.0", "3.10.0"}; !slices.Equal(in, want) {
		t.Errorf("%v", in)
	}
	if Minor("3.6.16") != "3.6" || Minor("x") != "" || MinorNumber("3.6.16") != 6 || MinorNumber("2.1.0") != -1 {
		t.Error("minor")
	}
}
