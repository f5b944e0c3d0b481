package operator_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

const example = "2026-02-01T10:00:00Z-000000"

// exampleStore is a store in memory, with one backup of a cluster of three members.
func exampleStore() operator.Config {
	ctx, store := context.Background(), blobtest.NewMemory()
	now := func() time.Time { return time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC) }
	c := catalog.New(store, catalog.WithClock(now))
	spec := cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.21"}
	_, err := c.CreateSpec(ctx, spec)
	check(err)
	_, err = store.Put(ctx, example+"/etcd.backup.gz", strings.NewReader(strings.Repeat("x", 1500)), blob.PutOptions{})
	check(err)
	digest := catalog.Digest{Size: 1500, SHA256: strings.Repeat("0", 64)}
	check(c.PutManifest(ctx, &catalog.Manifest{Backup: example, ClusterName: "main", EtcdVersion: "3.5.21",
		Revision: 1234, Reason: "periodic",
		Compression: "gzip", Raw: digest, Stored: digest}))
	check(c.CommitBackup(ctx, example, catalog.BackupInfo{EtcdVersion: "3.5.21", Time: catalog.BackupTime(example), Spec: spec}))
	return operator.Config{Store: "s3://bucket/main", Now: now,
		Open: func(context.Context, string) (blob.Store, error) { return store, nil }}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func Example() {
	ctx := context.Background()
	client, err := operator.Open(ctx, exampleStore()) // or operator.Config{Store: "s3://bucket/main", Env: os.Getenv}
	check(err)
	plan, err := client.PlanRestore(ctx, operator.RestoreRequest{Backup: operator.Latest})
	check(err)
	check(client.Estimate(ctx, plan))
	fmt.Printf("backup %s, revision %d, about %s\n", plan.Backup.Name, plan.Path.Revision, plan.Path.Estimate.Total.Round(time.Second))
	queued, err := client.Restore(ctx, plan)
	check(err)
	fmt.Println("queued as", queued.Command.Name)
	// Output:
	// backup 2026-02-01T10:00:00Z-000000, revision 1234, about 2s
	// queued as 2026-02-01T12:00:00Z-000000
}

func ExampleClient_Backups() {
	ctx := context.Background()
	client, err := operator.Open(ctx, exampleStore())
	check(err)
	list, err := client.Backups(ctx)
	check(err)
	for _, b := range list.Backups {
		fmt.Println(b.Name, b.Size)
	}
	// Output: 2026-02-01T10:00:00Z-000000 1500
}

func ExampleClient_Configure() {
	ctx := context.Background()
	client, err := operator.Open(ctx, exampleStore())
	check(err)
	spec, err := client.Configure(ctx, operator.SpecChange{EtcdVersion: new("3.6.1")}, operator.SettingsChange{
		Set: []operator.Setting{{Name: "auto-compaction-retention", Value: "1h"}},
	})
	check(err)
	fmt.Println(spec.MemberCount, spec.EtcdVersion, len(spec.Settings))
	// Output: 3 3.6.1 1
}

func ExampleClient_Follow() {
	ctx := context.Background()
	client, err := operator.Open(ctx, exampleStore())
	check(err)
	plan, err := client.PlanRestore(ctx, operator.RestoreRequest{Backup: example, Options: operator.RestoreOptions{Now: true}})
	check(err)
	queued, err := client.Restore(ctx, plan)
	check(err)
	for event, err := range client.Follow(ctx, queued.Command.Name, operator.FollowOptions{
		Pause: func(ctx context.Context) bool { _, err := client.Withdraw(ctx, queued.Command.Name); return err == nil },
	}) {
		check(err)
		switch e := event.(type) {
		case operator.Found:
			fmt.Println("restores", e.Command.Backup())
		case operator.Waiting:
			fmt.Println("waits for the", e.For)
		case operator.Begun:
			fmt.Println("begun by", e.Leader)
		case operator.StateEntered:
			fmt.Println(e.State)
		case operator.Ended:
			fmt.Println("ended:", e.Err())
		}
	}
	// Output:
	// restores 2026-02-01T10:00:00Z-000000
	// waits for the leader
	// ended: 2026-02-01T12:00:00Z-000000 was withdrawn before it began; nothing was changed
}
