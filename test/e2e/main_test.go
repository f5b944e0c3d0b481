// Package e2e tests the container image: masters, an S3 server and networks of containers on the local Docker engine.
//
// Everything that a run makes carries its label and is removed by it. Without a Docker engine the tests are skipped, and say so.
package e2e

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	rounds = flag.Int("rounds", 5, "rounds of TestKillContainers")
	strict = flag.Bool("strict", false, "writes that time out count as failed: for a machine that does nothing else")
	seed   = flag.Uint64("seed", 0, "what TestKillContainers is repeated with; 0 picks one and prints it")
)

// run names everything that this run of the tests makes.
var run = strings.ToLower(rand.Text()[:8])

const labelKey = "io.github.etcd-manager.e2e"

func label() string { return labelKey + "=" + run }

func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		_ = flag.Set("test.parallel", "3") // they wait more than they work
	}
	os.Setenv("NO_PROXY", "*") // containers are reached directly
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-interrupted
		cleanAll()
		os.Exit(1)
	}()
	code := m.Run()
	cleanAll()
	os.Exit(code)
}

// engine is the Docker engine's version, or why there is none.
var engine = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return docker(ctx, "version", "--format", "{{.Server.Version}}")
})

// needDocker skips the test where no Docker engine answers.
func needDocker(t *testing.T) {
	t.Helper()
	if _, err := engine(); err != nil {
		t.Skipf("skipped: no Docker engine answers: %v", err)
	}
}

// cleanAll removes what carries this run's label, and the images.
func cleanAll() {
	if _, err := engine(); err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	filter := "label=" + label()
	for _, kind := range []struct{ list, remove []string }{
		{[]string{"ps", "-aq", "--filter", filter}, []string{"rm", "-f", "-v"}},
		{[]string{"network", "ls", "-q", "--filter", filter}, []string{"network", "rm"}},
		{[]string{"volume", "ls", "-q", "--filter", filter}, []string{"volume", "rm"}},
		{[]string{"images", "-q", "--filter", filter}, []string{"rmi", "-f"}},
	} {
		ids, err := docker(ctx, kind.list...)
		if err == nil && ids != "" {
			_, err = docker(ctx, append(kind.remove, strings.Fields(ids)...)...)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "remove what the container tests have made (label %s): %v\n", label(), err)
		}
	}
	removeBuilt()
}
