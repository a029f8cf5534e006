"""Generated pictures: shapes with exact keypoints, textures, photometric changes; what a step draws from them."""
