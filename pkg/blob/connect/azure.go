package connect

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/azure"
)

// openAzure: with AZURE_STORAGE_ACCOUNT the URL begins with the container, as kOps hands it over, else with the account.
func openAzure(_ context.Context, u *url.URL, env func(string) string, o options) (blob.Store, error) {
	account, container, prefix := env("AZURE_STORAGE_ACCOUNT"), u.Host, cleanPrefix(u.Path)
	if account == "" {
		account = u.Host
		container, prefix, _ = strings.Cut(prefix, "/")
	}
	if account == "" || container == "" {
		return nil, fmt.Errorf("open store %s: the container's name is missing, as in azureblob://account/container/prefix, "+
			"or with AZURE_STORAGE_ACCOUNT azureblob://container/prefix", u)
	}
	s, err := azure.New(azure.Config{
		Account: account, Container: container, Prefix: prefix,
		Endpoint: env("AZURE_STORAGE_SERVICE_ENDPOINT"),
		Credentials: azure.Credentials{
			Key: env("AZURE_STORAGE_KEY"), SAS: env("AZURE_STORAGE_SAS_TOKEN"),
			TenantID: env("AZURE_TENANT_ID"), ClientID: env("AZURE_CLIENT_ID"), ClientSecret: env("AZURE_CLIENT_SECRET"),
			FederatedTokenFile: env("AZURE_FEDERATED_TOKEN_FILE"), AuthorityHost: env("AZURE_AUTHORITY_HOST"),
		},
		OnRequest: o.onRequest,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u, err)
	}
	return s, nil
}
