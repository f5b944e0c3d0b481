package minio

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/test/s3suite"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// TestObjectLock: what is under a retention period or a legal hold stays, and the error says so and until when; the rest goes.
func TestObjectLock(t *testing.T) {
	server := servers.StartMinIO(t, servers.InMemory())
	ctx, client := t.Context(), server.Client()
	server.Bucket = "locked"
	if _, err := client.CreateBucket(ctx, &awss3.CreateBucketInput{Bucket: &server.Bucket, ObjectLockEnabledForBucket: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
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
