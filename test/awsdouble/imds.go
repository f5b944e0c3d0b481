package awsdouble

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

const (
	imdsToken = "X-aws-ec2-metadata-token"
	imdsTTL   = "X-aws-ec2-metadata-token-ttl-seconds"
	roleName  = "masters"
)

// Metadata is the metadata service of one instance, version 2 alone: without a token there is no answer.
func (c *Cloud) Metadata(instance string) http.Handler {
	token := "token-of-" + instance
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/latest/api/token" {
			if r.Method != http.MethodPut || r.Header.Get(imdsTTL) == "" {
				http.Error(w, "Bad Request", http.StatusBadRequest)
				return
			}
			w.Header().Set(imdsTTL, r.Header.Get(imdsTTL))
			fmt.Fprint(w, token)
			return
		}
		if r.Header.Get(imdsToken) != token {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		c.mu.Lock()
		i, ok := c.now.instances[instance]
		c.mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		c.answerMetadata(w, r, i)
	})
}

func (c *Cloud) answerMetadata(w http.ResponseWriter, r *http.Request, i Instance) {
	switch r.URL.Path {
	case "/latest/dynamic/instance-identity/document":
		_ = json.NewEncoder(w).Encode(map[string]any{
			"accountId": c.Account, "availabilityZone": i.Zone, "instanceId": i.ID, "privateIp": i.IPv4,
			"region": c.Region, "version": "2017-09-30",
			"architecture": "x86_64", "imageId": "ami-0", "instanceType": "t3.medium", "pendingTime": "2026-01-01T00:00:00Z",
		})
	case "/latest/meta-data/local-ipv4":
		fmt.Fprint(w, i.IPv4)
	case "/latest/meta-data/ipv6":
		if i.IPv6 == "" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, i.IPv6)
	case "/latest/meta-data/iam/security-credentials/":
		fmt.Fprint(w, roleName)
	case "/latest/meta-data/iam/security-credentials/" + roleName:
		_ = json.NewEncoder(w).Encode(map[string]any{
			"Code": "Success", "LastUpdated": time.Now().UTC().Format(time.RFC3339), "Type": "AWS-HMAC",
			"AccessKeyId": "ASIADOUBLE", "SecretAccessKey": "double",
			"Token": "double", "Expiration": time.Now().Add(6 * time.Hour).UTC().Format(time.RFC3339),
		})
	default:
		http.NotFound(w, r)
	}
}
