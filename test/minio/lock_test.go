package minio

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/s3suite"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// TestObjectLock: what is under a retention period or a legal hold stays, and the error says so and until when; the rest goes.
func TestObjectLock(t *testing.T) {
	testutil.Long(t)
	server := lockedBucket(t)
	ctx, client := t.Context(), server.Client()
	s := s3suite.Connect(t, server, "main", nil)
	for _, key := range []string{"a/free", "a/held", "a/retained"} {
		if _, err := s.Put(ctx, key, strings.NewReader("x"), blob.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	until := time.Now().Add(time.Hour).Truncate(time.Second).UTC()
	if _, err := client.PutObjectRetention(ctx, &awss3.PutObjectRetentionInput{Bucket: &server.Bucket, Key: aws.String("main/a/retained"),
		Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionModeGovernance, RetainUntilDate: &until}}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.PutObjectLegalHold(ctx, &awss3.PutObjectLegalHoldInput{Bucket: &server.Bucket, Key: aws.String("main/a/held"),
		LegalHold: &types.ObjectLockLegalHold{Status: types.ObjectLockLegalHoldStatusOn}}); err != nil {
		t.Fatal(err)
	}
	n, err := s.Purge(ctx, "a/", func(string) bool { return true })
	var locked *blob.LockedError
	if n != 1 || !errors.Is(err, blob.ErrLocked) || errors.Is(err, blob.ErrDenied) || !errors.As(err, &locked) {
		t.Fatalf("Purge = %d, %v; want one object gone and two locked", n, err)
	}
	if strings.Join(locked.Keys, " ") != "a/held a/retained" || !locked.LegalHold || !locked.Until.Equal(until) {
		t.Errorf("locked are %v, hold %v, until %s; want until %s", locked.Keys, locked.LegalHold, locked.Until, until)
	}
}

func lockedBucket(t *testing.T) *servers.S3 {
	t.Helper()
	server := servers.StartMinIO(t, servers.InMemory())
	server.Bucket = "locked"
	if _, err := server.Client().CreateBucket(t.Context(),
		&awss3.CreateBucketInput{Bucket: &server.Bucket, ObjectLockEnabledForBucket: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
	return server
}

// lockAll has the bucket keep whatever is written for a day.
func lockAll(t *testing.T, server *servers.S3) {
	t.Helper()
	if _, err := server.Client().PutObjectLockConfiguration(t.Context(), &awss3.PutObjectLockConfigurationInput{Bucket: &server.Bucket,
		ObjectLockConfiguration: &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled,
			Rule: &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{Mode: types.ObjectLockRetentionModeCompliance,
				Days: aws.Int32(1)}}}}); err != nil {
		t.Fatal(err)
	}
}

// TestDefaultRetention: a bucket that locks all that is written is a good store. What has to be
// gone is gone for everybody who reads, though its versions stay, and it never shows again. Backups
// stay where they are, and are named as locked.
func TestDefaultRetention(t *testing.T) {
	testutil.Long(t)
	server := lockedBucket(t)
	lockAll(t, server)
	ctx := t.Context()
	s := s3suite.Connect(t, server, "main", nil)
	for range 2 { // the second one meets what the first has left
		if r, err := blob.Probe(ctx, s, "node-a"); err != nil || !r.Delete || !r.Fenced() {
			t.Fatalf("probe: %s, %v", r, err)
		}
	}
	c := catalog.New(s)
	const name = "2026-01-30T01:02:03Z-000000"
	for _, file := range []string{"etcd.backup.gz", "_etcd_backup.meta"} {
		if _, err := s.Put(ctx, name+"/"+file, strings.NewReader("{}"), blob.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		what     string
		put, del func() error
		gone     func() bool
	}{
		{"pin", func() error { return c.PinBackup(ctx, name, "why") }, func() error { return c.UnpinBackup(ctx, name) },
			func() bool { _, err := c.Pin(ctx, name); return errors.Is(err, catalog.ErrNotFound) }},
		{"command", func() error {
			_, err := c.QueueRestore(ctx, name, cluster.Spec{MemberCount: 3, EtcdVersion: "3.6.0"}, catalog.RestoreOptions{Now: true})
			return err
		}, func() error { return removeCommands(t, c) },
			func() bool { l, err := c.ControlListing(ctx); return err == nil && len(l.Commands) == 0 }},
		{"operation", func() error {
			_, err := c.PutOperation(ctx, catalog.Operation{ID: "old", Kind: catalog.KindRestore, State: catalog.StateDone}, "")
			return err
		}, func() error { _, err := c.PruneOperations(ctx, 0); return err },
			func() bool { l, err := c.ControlListing(ctx); return err == nil && len(l.Operations) == 0 }},
	} {
		for range 2 { // it can be made and removed again
			if err := x.put(); err != nil || x.gone() {
				t.Fatalf("%s: not there after it was made: %v", x.what, err)
			}
			for range 2 { // removing what is hidden must not show it again
				if err := x.del(); err != nil || !x.gone() {
					t.Fatalf("%s: there after it was removed: %v", x.what, err)
				}
			}
		}
	}
	if n, err := s.Purge(ctx, "control/", func(string) bool { return true }); n != 0 || err != nil {
		t.Errorf("purging what is hidden = %d, %v; want nothing done and no error", n, err)
	}
	if l, err := c.ControlListing(ctx); err != nil || len(l.Commands)+len(l.Operations) > 0 {
		t.Errorf("hidden objects show again: %+v, %v", l, err)
	}
	if _, err := c.DeleteBackups(ctx, name); !errors.Is(err, catalog.ErrLocked) {
		t.Errorf("deleting a locked backup: %v", err)
	}
	if l, err := c.Backups(ctx); err != nil || len(l.Backups) != 1 {
		t.Errorf("the locked backup isn't listed: %+v, %v", l, err)
	}
}

// removeCommands withdraws all commands, also those that nobody sees any more.
func removeCommands(t *testing.T, c *catalog.Catalog) error {
	t.Helper()
	l, err := c.ControlListing(t.Context())
	if err != nil {
		return err
	}
	for _, o := range l.Commands {
		if err := errors.Join(c.RemoveCommand(t.Context(), o.Name), c.RemoveCommand(t.Context(), o.Name)); err != nil {
			return err
		}
	}
	return nil
}
