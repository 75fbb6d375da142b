"""What a user imports: documents, the client, the artifact format and the engines that serve it. Imports none of the other rooms."""
