package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/test/servers"
)

const (
	root        = "../.."
	etcd35      = "3.5.35"
	buildLimit  = 15 * time.Minute
	ctlInBuilt  = "ko-app/etcd-manager-ctl"
	managerPath = "/ko-app/etcd-manager"
)

// built is the directory with the image's files, as images/etcd-manager/build.sh lays them out.
var built struct {
	sync.Mutex
	dir string
}

func removeBuilt() {
	built.Lock()
	defer built.Unlock()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
}

func tag(name string) string { return "etcd-manager-e2e-" + name + ":" + run }

// managerImage builds the image as "make image" does, once for all tests.
var managerImage = sync.OnceValues(func() (string, error) {
	began := time.Now()
	dir, err := os.MkdirTemp("", "etcd-manager-e2e-")
	if err != nil {
		return "", err
	}
	built.Lock()
	built.dir = dir
	built.Unlock()
	files := filepath.Join(dir, "image")
	ctx, cancel := context.WithTimeout(context.Background(), buildLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(root, "images/etcd-manager/build.sh"))
	cmd.Env = append(os.Environ(), "CONTEXT_ONLY="+files, "TRIMPATH=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the image's files: %w\n%s", err, out)
	}
	name := tag("manager")
	_, err = docker(ctx, "build", "--quiet", "--label", label(), "--tag", name, "--file",
		filepath.Join(root, "images/etcd-manager/Dockerfile"), files)
	fmt.Fprintf(os.Stderr, "built the image in %s\n", time.Since(began).Round(time.Second))
	return name, err
})

// image returns the manager's image.
func image(t testing.TB) string {
	t.Helper()
	name, err := managerImage()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// ctlBinary is the tool for this machine, which is the image's.
func ctlBinary(t testing.TB) string {
	t.Helper()
	image(t)
	return filepath.Join(built.dir, "image", ctlInBuilt)
}

// derived builds an image out of a Dockerfile's text and files that it copies.
func derived(name, dockerfile string, files map[string]string) (string, error) {
	dir, err := os.MkdirTemp("", "etcd-manager-e2e-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	for to, from := range files {
		data, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, to), data, 0o755); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), buildLimit)
	defer cancel()
	_, err = docker(ctx, "build", "--quiet", "--label", label(), "--tag", tag(name), dir)
	return tag(name), err
}

// etcd35Image is the manager's image with etcd 3.5 where deployments put it.
var etcd35Image = sync.OnceValues(func() (string, error) {
	base, err := managerImage()
	if err != nil {
		return "", err
	}
	binary, err := servers.Build("etcd-3.5")
	if err != nil {
		return "", err
	}
	return derived("etcd35", "FROM "+base+"\nCOPY etcd /opt/etcd-v"+etcd35+"/etcd\n", map[string]string{"etcd": binary})
})

// s3Image is versitygw alone.
var s3Image = sync.OnceValues(func() (string, error) {
	binary, err := servers.Build("versitygw")
	if err != nil {
		return "", err
	}
	return derived("s3", "FROM scratch\nCOPY versitygw /versitygw\nVOLUME /data\nENTRYPOINT [\"/versitygw\"]\n",
		map[string]string{"versitygw": binary})
})

// cutImage holds the tool that cuts networks.
var cutImage = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "etcd-manager-e2e-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), buildLimit)
	defer cancel()
	binary := filepath.Join(dir, "cut")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cut")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build cut: %w\n%s", err, out)
	}
	return derived("cut", "FROM scratch\nCOPY cut /cut\nENTRYPOINT [\"/cut\"]\nCMD [\"hold\"]\n", map[string]string{"cut": binary})
})

// must turns what an image build returned into a name.
func must(t testing.TB, build func() (string, error)) string {
	t.Helper()
	name, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return name
}
