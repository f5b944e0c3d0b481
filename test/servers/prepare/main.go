// Command prepare builds the programs that tests start (S3 servers, other versions of etcd), so
// that no test's time goes for that on a new machine. Tests build what they need by themselves too.
package main

import (
	"fmt"
	"os"
	"time"

	"github.com/etcd-manager/etcd-manager/test/servers"
)

func main() {
	for _, name := range servers.Names() {
		if name == "kube-apiserver" || name == "helm" {
			continue // they take longest, and only "make e2e-kubernetes" and "make chart" start them
		}
		began := time.Now()
		if _, err := servers.Build(name); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n", name, err)
			os.Exit(1)
		}
		fmt.Printf("%s: ready after %s\n", name, time.Since(began).Round(time.Second))
	}
}
