package e2e

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"path"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// store is where the masters of a world keep backups.
type store struct {
	url string
	// env and mounts are what a container needs to reach it.
	env, mounts []string
	// address is the server's, empty for files.
	address string
	ctl     func(w *world, args ...string) (string, error)
	// read returns an object below url, errNoFile if there is none.
	read func(t testing.TB, key string) ([]byte, error)
}

const bucket = "backups"

// startS3 starts the S3 server as a container. The tool runs on this machine, outside of all containers.
func (w *world) startS3(prefix string) {
	t := w.t
	t.Helper()
	s := &store{url: "s3://" + bucket + "/" + prefix, address: w.address(10)}
	key, secret, endpoint := "test"+rand.Text()[:12], rand.Text(), "http://"+s.address+":7070"
	s.env = []string{"S3_ENDPOINT=" + endpoint, "S3_REGION=us-east-1", "S3_ACCESS_KEY_ID=" + key, "S3_SECRET_ACCESS_KEY=" + secret}
	args := append([]string{"run", "-d", "--name", w.name + "-s3", "--network", w.network, "--ip", s.address, "--mount",
		"type=volume,dst=/data",
		"-e", "ROOT_ACCESS_KEY=" + key, "-e", "ROOT_SECRET_KEY=" + secret}, w.labels()...)
	mustDocker(t, append(args, must(t, s3Image), "--port", ":7070", "--region", "us-east-1", "--quiet", "posix", "/data")...)
	client := awss3.New(awss3.Options{BaseEndpoint: &endpoint, Region: "us-east-1", UsePathStyle: true, Retryer: aws.NopRetryer{},
		Credentials: credentials.NewStaticCredentialsProvider(key, secret, "")})
	waitFor(t, "S3 server has made a bucket", time.Minute, func() string {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := client.CreateBucket(ctx, &awss3.CreateBucketInput{Bucket: aws.String(bucket)})
		var mine *types.BucketAlreadyOwnedByYou
		if err == nil || errors.As(err, &mine) {
			return ""
		}
		return err.Error()
	})
	s.ctl = func(w *world, args ...string) (string, error) {
		return runTool(ctlBinary(w.t), s.env, append([]string{"--backup-store=" + s.url}, args...)...)
	}
	s.read = func(t testing.TB, key string) ([]byte, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		out, err := client.GetObject(ctx, &awss3.GetObjectInput{Bucket: aws.String(bucket), Key: aws.String(path.Join(prefix, key))})
		var missing *types.NoSuchKey
		if errors.As(err, &missing) {
			return nil, errNoFile
		}
		if err != nil {
			return nil, err
		}
		defer out.Body.Close()
		return io.ReadAll(out.Body)
	}
	w.store = s
}

// startFiles makes a directory that all masters share. The tool runs in a container of its own.
func (w *world) startFiles() {
	volume := w.name + "-store"
	mustDocker(w.t, append(append([]string{"volume", "create"}, w.labels()...), volume)...)
	// What holds the directory for reading by this test; it never runs.
	reader := w.name + "-reader"
	mustDocker(w.t, append(append([]string{"create", "--name", reader, "--network", "none", "-v", volume + ":/backups"}, w.labels()...),
		must(w.t, cutImage))...)
	s := &store{url: "file:///backups", mounts: []string{"-v", volume + ":/backups"}}
	s.ctl = func(w *world, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		run := append([]string{"run", "--rm", "--network", "none", "-v", volume + ":/backups", "--entrypoint", "/etcd-manager-ctl"},
			w.labels()...)
		return docker(ctx, append(append(run, image(w.t), "--backup-store="+s.url), args...)...)
	}
	s.read = func(_ testing.TB, key string) ([]byte, error) { return containerFile(reader, "/backups/"+key) }
	w.store = s
}

// marker is control/etcd-cluster-created.
type marker struct {
	Phase string `json:"phase"`
	Token string `json:"token"`
}

// leaderRecord is control/leader.
type leaderRecord struct {
	Term     uint64 `json:"term"`
	Node     string `json:"node"`
	Instance string `json:"instance"`
}

// object reads a JSON object of the store. The result tells whether there is one.
func (w *world) object(key string, into any) bool {
	w.t.Helper()
	data, err := w.store.read(w.t, key)
	if errors.Is(err, errNoFile) {
		return false
	}
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		w.t.Fatalf("read %s: %v", key, err)
	}
	return true
}

func (w *world) marker() (m marker) {
	w.t.Helper()
	w.object("control/etcd-cluster-created", &m)
	return m
}

func (w *world) leaderRecord() (l leaderRecord) {
	w.t.Helper()
	w.object("control/leader", &l)
	return l
}
