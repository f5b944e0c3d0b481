package minio

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
	"github.com/etcd-manager/etcd-manager/test/s3suite"
)

// TestOneLockedBackup: of many old backups one is under a legal hold. It alone stays, and is named; all others go.
func TestOneLockedBackup(t *testing.T) {
	testutil.Long(t)
	server := lockedBucket(t)
	ctx := t.Context()
	c := catalog.New(s3suite.Connect(t, server, "main", nil))
	now := time.Now().UTC().Truncate(time.Second)
	d := catalog.Digest{Size: 4, SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte("data")))}
	for i := range 40 { // a quarter of an hour apart, the newest a month ago
		at := now.Add(-30*24*time.Hour - time.Duration(40-i)*15*time.Minute)
		name := catalog.NewBackupName(at, nil)
		_, err := c.PutBackupData(ctx, name, catalog.DataFile, strings.NewReader("data"))
		testutil.Must(t, err)
		testutil.Must(t, c.PutManifest(ctx, &catalog.Manifest{Backup: name, ClusterName: "c", ClusterID: 1, EtcdVersion: "3.6.0",
			Revision: int64(i + 1), Compression: catalog.CompressionGzip, Raw: d, Stored: d, Started: at, Finished: at}))
		testutil.Must(t, c.CommitBackup(ctx, name, catalog.BackupInfo{EtcdVersion: "3.6.0", Time: at}))
	}
	list, err := c.Backups(ctx)
	testutil.Must(t, err)
	p := prune.New(c, prune.Policy{Backups: retention.Default(), Changes: 24 * time.Hour})
	pl, err := p.Plan(ctx, now, prune.Exempt{})
	testutil.Must(t, err)
	var stuck string
	goes := 0
	for _, x := range pl.Decisions {
		if x.Backup != "" && !x.Keep {
			stuck = x.Backup
			goes++
		}
	}
	if goes < 20 {
		t.Fatalf("only %d of %d backups would go", goes, len(list.Backups))
	}
	hold := func(s types.ObjectLockLegalHoldStatus) {
		_, err := server.Client().PutObjectLegalHold(ctx, &awss3.PutObjectLegalHoldInput{Bucket: &server.Bucket,
			Key: aws.String("main/" + stuck + "/" + catalog.DataFile), LegalHold: &types.ObjectLockLegalHold{Status: s}})
		testutil.Must(t, err)
	}
	hold(types.ObjectLockLegalHoldStatusOn)
	r, err := p.Run(ctx, now, prune.Exempt{})
	if err != nil || r.Backups != goes-1 || r.Denied != "" || r.Locked != 1 || r.Refused > 0 || r.Until.IsZero() {
		t.Errorf("of %d backups that go, one of them locked: %+v, %v", goes, r, err)
	}
	after, err := c.Backups(ctx)
	if err != nil || len(after.Backups) > len(list.Backups)-goes+1 {
		t.Errorf("%d of %d backups are left: %v", len(after.Backups), len(list.Backups), err)
	}
	// What is left of it is no backup any more, and goes like one whose upload broke: a day later, by the server's own clock.
	for _, b := range after.Backups {
		if b.Name == stuck {
			t.Errorf("%s, of which only the data are left, counts as a backup", stuck)
		}
	}
	hold(types.ObjectLockLegalHoldStatusOff)
	if r, err = p.Run(ctx, now.Add(25*time.Hour), prune.Exempt{}); err != nil || r.Hold() != "" || r.Locked+r.Refused > 0 {
		t.Errorf("when it is free: %+v, %v", r, err)
	}
}
