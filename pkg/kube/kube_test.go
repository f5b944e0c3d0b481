package kube

import (
	"testing"
	"time"
)

func TestKubeKeys(t *testing.T) {
	for key, want := range map[string]string{
		"/registry/pods/shop/web":                                        "Pod shop/web",
		"/registry/services/specs/shop/web":                              "Service shop/web",
		"/registry/services/endpoints/shop/web":                          "Endpoints shop/web",
		"/registry/namespaces/shop":                                      "Namespace shop",
		"/registry/minions/node":                                         "Node node",
		"/registry/clusterroles/system:node":                             "ClusterRole system:node",
		"/registry/apiextensions.k8s.io/customresourcedefinitions/w.x.y": "CustomResourceDefinition w.x.y",
		"/registry/example.com/widgets/shop/w":                           "widgets.example.com shop/w",
		"/registry/masterleases/10.0.0.1":                                "masterleases 10.0.0.1",
		"/registry/ranges/serviceips":                                    "ranges serviceips",
		"/registry/pods//web":                                            "",
		"/registry/health":                                               "",
		"/other/pods/shop/web":                                           "",
	} {
		o, ok := ObjectOf(key)
		if ok != (want != "") || ok && o.String() != want {
			t.Errorf("%s is %q, %v; want %q", key, o, ok, want)
		}
	}
	in := InNamespace("shop")
	for key, want := range map[string]bool{
		"/registry/pods/shop/web": true, "/registry/namespaces/shop": true, "/registry/services/specs/shop/web": true,
		"/registry/pods/shop2/web": false, "/registry/shop/pods/x": false, "/registry/namespaces/shop2": false,
		"/registry/clusterroles/shop": false,
	} {
		if in([]byte(key)) != want {
			t.Errorf("%s in namespace shop: %v", key, !want)
		}
	}
}

func TestKubeValues(t *testing.T) {
	v := ReadValue([]byte(`{"apiVersion":"x/v1","kind":"W","metadata":{"deletionTimestamp":"2026-11-22T12:00:30Z","deletionGracePeriodSeconds":30}}`))
	if v.Form != "json" || v.Kind != "W" || !v.Asked.Equal(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)) {
		t.Errorf("JSON: %+v", v)
	}
	if v := ReadValue([]byte("k8s:enc:aescbc:v1:key1:\x01\x02")); v.Form != "encrypted" || v.Provider != "aescbc, key key1" {
		t.Errorf("encrypted: %+v", v)
	}
	for _, bad := range []string{"", "{", "k8s\x00", "k8s\x00\xff\xff\xff", "k8s\x00\x0a\xff", "plain"} {
		if v := ReadValue([]byte(bad)); v.Kind != "" || !v.Asked.IsZero() {
			t.Errorf("%q: %+v", bad, v)
		}
	}
}
