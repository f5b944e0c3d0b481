package catalog

import "testing"

func TestIsBackupFile(t *testing.T) {
	const name = "2026-01-30T01:02:03Z-000009"
	for key, want := range map[string]bool{
		name + "/etcd.backup.gz":                 true,
		name + "/_etcd_backup.meta":              true,
		name + "/_etcd_manager_manifest.json":    true,
		"before-the-upgrade/etcd.backup.gz":      true,
		name + "/etcd.backup.gz.tmp":             false,
		name + "/other":                          false,
		name + "/":                               false,
		name:                                     false,
		"etcd.backup.gz":                         false,
		"/etcd.backup.gz":                        false,
		"../etcd.backup.gz":                      false,
		"./etcd.backup.gz":                       false,
		"a/b/etcd.backup.gz":                     false,
		name + "/../control/etcd-cluster-spec":   false,
		"control/etcd.backup.gz":                 false,
		"control/etcd-cluster-spec":              false,
		"control/" + name + "/_command.json":     false,
		"control/" + name + "/_etcd_backup.meta": false,
		"discovery/etcd.backup.gz":               false,
		"changes/etcd.backup.gz":                 false,
		"":                                       false,
	} {
		if got := IsBackupFile(key); got != want {
			t.Errorf("%q: %t, want %t", key, got, want)
		}
	}
}
