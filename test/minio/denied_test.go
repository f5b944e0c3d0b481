package minio

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/s3"
	"github.com/etcd-manager/etcd-manager/test/s3suite"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// TestProbeNamesMissingPermissions runs the probe under real policies.
func TestProbeNamesMissingPermissions(t *testing.T) {
	testutil.Long(t)
	server := servers.StartMinIO(t)
	all := []string{"s3:PutObject", "s3:GetObject", "s3:ListBucket", "s3:ListBucketVersions", "s3:DeleteObject", "s3:DeleteObjectVersion"}
	tests := []struct {
		without string
		missing string
		ok      bool
	}{
		{without: "", ok: true},
		{without: "s3:PutObject", missing: "s3:PutObject"},
		{without: "s3:GetObject", missing: "s3:GetObject"},
		{without: "s3:ListBucket", missing: "s3:ListBucket"},
		{without: "s3:ListBucketVersions", ok: true}, // The bucket keeps no versions.
		{without: "s3:DeleteObject s3:DeleteObjectVersion", missing: "s3:DeleteObject"},
		{without: "s3:ListBucket s3:DeleteObject s3:DeleteObjectVersion", missing: "s3:ListBucket s3:DeleteObject"},
	}
	for _, tt := range tests {
		t.Run("without "+tt.without, func(t *testing.T) {
			var allowed []string
			for _, action := range all {
				if !strings.Contains(" "+tt.without+" ", " "+action+" ") {
					allowed = append(allowed, action)
				}
			}
			keys := restrict(t, server, allowed)
			s := s3suite.Connect(t, server, "main", func(c *s3.Config) {
				c.AccessKeyID, c.SecretAccessKey, c.SessionToken = keys.AccessKeyID, keys.SecretAccessKey, keys.SessionToken
			})
			r, err := blob.Probe(t.Context(), s, "node")
			t.Logf("%s\n%v", r, err)
			if (err == nil) != tt.ok {
				t.Errorf("error %v", err)
			}
			for action := range strings.FieldsSeq(tt.missing) {
				if !strings.Contains(strings.Join(r.Missing, " "), action) || !strings.Contains(err.Error(), action) {
					t.Errorf("%s is not named: missing %q, error %v", action, r.Missing, err)
				}
			}
			if err != nil && !errors.Is(err, blob.ErrDenied) {
				t.Errorf("error %v", err)
			}
			left, err := server.Client().ListObjectsV2(t.Context(), &awss3.ListObjectsV2Input{Bucket: &server.Bucket})
			if err != nil || len(left.Contents) != 0 && r.Delete {
				t.Errorf("%d objects are left, %v", len(left.Contents), err)
			}
			if tt.ok && !r.Fenced() {
				t.Errorf("conditions don't work: %s", r)
			}
		})
	}
}

// restrict gets temporary credentials that allow only some actions.
func restrict(t *testing.T, server *servers.S3, actions []string) aws.Credentials {
	t.Helper()
	policy := fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["%s"],"Resource":["arn:aws:s3:::*"]}]}`,
		strings.Join(actions, `","`))
	status, answer := assumeRole(t, server, policy)
	// MinIO serves objects before it knows its users.
	for deadline := time.Now().Add(30 * time.Second); bytes.Contains(answer, []byte("not initialized")) && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
		status, answer = assumeRole(t, server, policy)
	}
	var out struct {
		Result struct {
			Credentials struct{ AccessKeyId, SecretAccessKey, SessionToken string } // As in the answer.
		} `xml:"AssumeRoleResult"`
	}
	if err := xml.NewDecoder(bytes.NewReader(answer)).Decode(&out); err != nil || status != http.StatusOK {
		t.Fatalf("assume role: %d, %v\n%s", status, err, answer)
	}
	c := out.Result.Credentials
	return aws.Credentials{AccessKeyID: c.AccessKeyId, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}
}

func assumeRole(t *testing.T, server *servers.S3, policy string) (status int, answer []byte) {
	t.Helper()
	body := url.Values{"Action": {"AssumeRole"}, "Version": {"2011-06-15"}, "DurationSeconds": {"3600"}, "Policy": {policy}}.Encode()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.Endpoint, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	sum := sha256.Sum256([]byte(body))
	root, err := credentials.NewStaticCredentialsProvider(server.AccessKeyID, server.SecretAccessKey, "").Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := v4.NewSigner().SignHTTP(t.Context(), root, req, hex.EncodeToString(sum[:]), "sts", server.Region, time.Now()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, answer
}
